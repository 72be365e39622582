"""The capacity search: the choice of the next trial, and the estimate of the capacity. Pure."""
