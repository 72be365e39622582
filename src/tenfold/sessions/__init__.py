"""Sessions that any instance can read: what a user is known by between two requests."""
