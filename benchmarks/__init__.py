"""Side by side with peers, in one run: ``make bench``, or ``python -m benchmarks.NAME`` for one."""
