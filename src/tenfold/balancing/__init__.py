"""Balancing: which instance gets a request, and when it is refused."""
