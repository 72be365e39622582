"""Take a Python web service from 100 users to a million, and prove every step."""

__version__ = "0.1.0"
