"""Which instance gets this request, when an instance gets none, and when to refuse."""
"""Balancing: which instance gets a request, and when it is refused."""
