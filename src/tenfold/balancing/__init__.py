"""Which instance gets this request, when an instance gets none, and when to refuse."""
