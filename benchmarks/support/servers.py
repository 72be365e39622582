"""Servers that benchmarks start for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tenfold.settings import Settings, StackSettings
from tenfold.stack import Stack


@contextmanager
def redis_url() -> Iterator[str]:
    """Run a Redis; yield its address."""
    with Stack(Settings(stack=StackSettings(database=False, nginx=False, redis=True))) as stack:
        yield next(server.url for server in stack.servers if server.kind == "redis")
