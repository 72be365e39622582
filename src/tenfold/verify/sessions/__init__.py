"""Checks of sessions."""
