"""What a block of code reads, noted by name: so that a cache knows what a result depends on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["PERSONAL", "ReadLog"]


class ReadLog:
    """Names of what is read, collected for the blocks of the current context.

    Args:
        what: is read, for debugging.
    """

    def __init__(self, what: str) -> None:
        self._collecting: ContextVar[set[str] | None] = ContextVar(what, default=None)

    @property
    def is_collecting(self) -> bool:
        """Whether a block of this context collects names."""
        return self._collecting.get() is not None

    def add(self, *names: str) -> None:
        """Note that these were read."""
        if (found := self._collecting.get()) is not None:
            found.update(names)

    @contextmanager
    def collect(self) -> Iterator[set[str]]:
        """Collect the names that are noted inside of a block; also for the blocks around it."""
        found: set[str] = set()
        mark = self._collecting.set(found)
        try:
            yield found
        finally:
            self._collecting.reset(mark)
            self.add(*found)


PERSONAL = ReadLog("personal reads")
"""Reads of what belongs to one visitor: the session, the current user or tenant."""
