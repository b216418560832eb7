"""The HTML report of a study: made from its text files alone, without torch."""
