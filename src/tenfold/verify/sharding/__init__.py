"""Checks of shards."""
