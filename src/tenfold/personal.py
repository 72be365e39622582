"""Reads of what belongs to one visitor, noted so that a cache can refuse what depends on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["note_personal_read", "watch_personal_reads"]

_watching: ContextVar[set[str] | None] = ContextVar("personal reads", default=None)


def note_personal_read(name: str) -> None:
    """Note that the current user, session or tenant was read; ``name`` says which, for a message."""
    if (found := _watching.get()) is not None:
        found.add(name)


@contextmanager
def watch_personal_reads() -> Iterator[set[str]]:
    """Collect the names that are noted inside of a block; also for the blocks around it."""
    outer = _watching.get()
    found: set[str] = set()
    mark = _watching.set(found)
    try:
        yield found
    finally:
        _watching.reset(mark)
        if outer is not None:
            outer.update(found)
