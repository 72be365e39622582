"""Asking a store that may fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tenfold.breaker import Breaker
from tenfold.errors import SessionStoreError

NEVER = Breaker(failures=10**9, ratio=2)


async def eventually(call: Callable[[], Awaitable[Any]], *, seconds: float = 10.0) -> Any:
    """What ``call`` answers once it no longer raises."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except SessionStoreError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def told(call: Awaitable[Any]) -> str:
    with pytest.raises(SessionStoreError) as caught:
        await call
    return str(caught.value)
