"""Checks of replicas and pools."""
