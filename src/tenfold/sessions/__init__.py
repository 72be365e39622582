"""Sessions that any instance can read: who a client is, and its data between two requests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.sessions.cookie_sessions import CookieSessions
    from tenfold.sessions.middleware import SessionMiddleware, current
    from tenfold.sessions.server_sessions import ServerSessions
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
    "ServerSessions",
    "Session",
    "SessionMiddleware",
    "current",
]

_MODULES = {
    "BearerTransport": "transport",
    "CookieSessions": "cookie_sessions",
    "CookieTransport": "transport",
    "MemoryStore": "stores.memory",
    "RedisStore": "stores.redis",
    "SQLStore": "stores.sqlalchemy",
    "ServerSessions": "server_sessions",
    "Session": "session",
    "SessionMiddleware": "middleware",
    "current": "middleware",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that an import loads only the library that the imported name needs.
    if name in _MODULES:
        return getattr(import_module(f"tenfold.sessions.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
