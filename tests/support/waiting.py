"""Wait for a condition, with a deadline, in tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

POLL_S = 0.02
Value = TypeVar("Value")


def eventually(look: Callable[[], Value], *, within_s: float = 20.0) -> Value:
    """Return the first true value of ``look``; fail after ``within_s`` seconds."""
    deadline = time.monotonic() + within_s
    while not (value := look()):
        assert time.monotonic() < deadline, f"still {value!r} after {within_s:g} s"
        time.sleep(POLL_S)
    return value


async def succeeds_eventually(
    call: Callable[[], Awaitable[Any]], *, despite: type[Exception], within_s: float = 15.0
) -> Any:
    """Return the first answer of ``call`` that does not raise ``despite``."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return await call()
        except despite:
            assert time.monotonic() < deadline, f"still failing after {within_s:g} s"
            await asyncio.sleep(POLL_S)
