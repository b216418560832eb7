"""Latency: structures that are measured, the table they are kept in, and what is predicted from them."""
