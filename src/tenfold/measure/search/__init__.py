"""The capacity search: which trial comes next, and what the capacity is. Pure."""
