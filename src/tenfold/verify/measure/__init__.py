"""Checks of the baseline."""
