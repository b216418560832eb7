"""A study: its files, records and storage, and what follows from them."""
