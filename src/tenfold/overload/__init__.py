"""Overload control: an adaptive concurrency limit, fair shares, rate limits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.overload.gcra import MemoryRates, Rate
    from tenfold.overload.limiter import ConcurrencyLimiter
    from tenfold.overload.limits import AIMDLimit, FixedLimit, GradientLimit
    from tenfold.overload.ratelimiter import RateLimiter
    from tenfold.overload.redis import RedisRates

__all__ = [
    "AIMDLimit",
    "ConcurrencyLimiter",
    "FixedLimit",
    "GradientLimit",
    "MemoryRates",
    "Rate",
    "RateLimiter",
    "RedisRates",
]

_HOMES = {
    "AIMDLimit": "limits",
    "ConcurrencyLimiter": "limiter",
    "FixedLimit": "limits",
    "GradientLimit": "limits",
    "MemoryRates": "gcra",
    "Rate": "gcra",
    "RateLimiter": "ratelimiter",
    "RedisRates": "redis",
}


def __getattr__(name: str) -> Any:
    # Lazy: each name loads its own module only.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.overload.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
