"""What a study is, as plain data: policies, spaces, definitions, objectives, constraints. No torch."""
