"""The pattern as services write it; for negative controls."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import redis


def naive_cache(client: redis.Redis, ttl: int = 60) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            key = f"query:{function.__name__}:{args}:{kwargs}"
            cached = client.get(key)
            if cached:
                found = json.loads(cached)
                if found is not None:
                    return found
            value = function(*args, **kwargs)
            client.set(key, json.dumps(value, default=str), ex=ttl)
            return value

        return wrapper

    return decorate
