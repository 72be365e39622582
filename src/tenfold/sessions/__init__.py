"""Sessions that any instance can read: what a user is known by between two requests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.sessions.cookie import CookieSessions
    from tenfold.sessions.middleware import SessionMiddleware
    from tenfold.sessions.request import current
    from tenfold.sessions.server import Sessions
    from tenfold.sessions.session import Session
    from tenfold.sessions.stores.memory import MemoryStore
    from tenfold.sessions.stores.redis import RedisStore
    from tenfold.sessions.stores.sqlalchemy import SQLStore
    from tenfold.sessions.transport import BearerTransport, CookieTransport

__all__ = [
    "BearerTransport",
    "CookieSessions",
    "CookieTransport",
    "MemoryStore",
    "RedisStore",
    "SQLStore",
    "Session",
    "SessionMiddleware",
    "Sessions",
    "current",
]

_HOMES = {
    "BearerTransport": "transport",
    "CookieSessions": "cookie",
    "CookieTransport": "transport",
    "MemoryStore": "stores.memory",
    "RedisStore": "stores.redis",
    "SQLStore": "stores.sqlalchemy",
    "Session": "session",
    "SessionMiddleware": "middleware",
    "Sessions": "server",
    "current": "request",
}


def __getattr__(name: str) -> Any:
    # Who takes one piece loads that piece, and no library that another one is about.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.sessions.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
