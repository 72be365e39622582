"""Replicas and pools: connections that are counted, bounded, and whose holders have names."""
