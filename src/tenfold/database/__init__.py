"""Databases: replicas, pools that name who holds them, and statements that end when nobody waits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.database.freshness import FreshnessLimits
    from tenfold.database.health import HealthLimits
    from tenfold.database.middleware import ConsistencyMiddleware
    from tenfold.database.pool import pool_options
    from tenfold.database.router import DatabaseRouter
    from tenfold.database.visits import PoolMiddleware

__all__ = [
    "ConsistencyMiddleware",
    "DatabaseRouter",
    "FreshnessLimits",
    "HealthLimits",
    "PoolMiddleware",
    "pool_options",
]

_HOMES = {
    "ConsistencyMiddleware": "middleware",
    "DatabaseRouter": "router",
    "FreshnessLimits": "freshness",
    "HealthLimits": "health",
    "PoolMiddleware": "visits",
    "pool_options": "pool",
}


def __getattr__(name: str) -> Any:
    # Who takes one piece loads that piece.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.database.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
