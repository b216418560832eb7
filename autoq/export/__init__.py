"""File formats: what a policy looks like on disk."""
