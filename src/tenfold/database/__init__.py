"""Databases: replicas, pools, and statements that end when nobody waits for them."""
