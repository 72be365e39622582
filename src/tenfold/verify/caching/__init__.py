"""Checks of query caches."""
