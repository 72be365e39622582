"""Databases: read replicas, connection pools, and statements that end with their request."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.database.pools.pool import pool_options
    from tenfold.database.pools.request_context import PoolMiddleware
    from tenfold.database.replicas.consistency import ConsistencyMiddleware
    from tenfold.database.replicas.freshness import FreshnessLimits
    from tenfold.database.replicas.router import DatabaseRouter
    from tenfold.database.replicas.servers import HealthLimits

__all__ = [
    "ConsistencyMiddleware",
    "DatabaseRouter",
    "FreshnessLimits",
    "HealthLimits",
    "PoolMiddleware",
    "pool_options",
]

_HOMES = {
    "ConsistencyMiddleware": "replicas.consistency",
    "DatabaseRouter": "replicas.router",
    "FreshnessLimits": "replicas.freshness",
    "HealthLimits": "replicas.servers",
    "PoolMiddleware": "pools.request_context",
    "pool_options": "pools.pool",
}


def __getattr__(name: str) -> Any:
    # Lazy: each piece loads only the library it is about.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.database.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
