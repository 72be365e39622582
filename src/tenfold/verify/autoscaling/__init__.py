"""Checks that scale the running service."""
