"""Overload control: an adaptive concurrency limit, fair shares, rate limits."""
