"""Query caching: results of functions in memory and Redis, never stale, foreign or broken."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.caching.cache import QueryCache
    from tenfold.caching.durable import InvalidationLog

__all__ = ["InvalidationLog", "QueryCache"]

_HOMES = {"InvalidationLog": "durable", "QueryCache": "cache"}


def __getattr__(name: str) -> Any:
    # Lazy: each piece loads only the library it is about.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.caching.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
