"""The HTML report of a study, built from the study's text files without torch."""
