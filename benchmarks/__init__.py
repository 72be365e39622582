"""Measurements of tenfold itself: ``python -m benchmarks.<name>``, one table each."""
