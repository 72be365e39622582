"""Checks of caches between the service and its users."""
