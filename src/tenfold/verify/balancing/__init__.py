"""Checks of load balancing."""
