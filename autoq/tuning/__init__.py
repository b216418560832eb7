"""The search: what runs next, in worker processes of Ray."""
