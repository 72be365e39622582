"""Databases: replicas, pools, and statements that end when nobody waits for them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.database.freshness import FreshnessLimits
    from tenfold.database.health import HealthLimits
    from tenfold.database.middleware import ConsistencyMiddleware
    from tenfold.database.router import DatabaseRouter

__all__ = ["ConsistencyMiddleware", "DatabaseRouter", "FreshnessLimits", "HealthLimits"]

_HOMES = {
    "ConsistencyMiddleware": "middleware",
    "DatabaseRouter": "router",
    "FreshnessLimits": "freshness",
    "HealthLimits": "health",
}


def __getattr__(name: str) -> Any:
    # Who takes one piece loads that piece.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.database.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
