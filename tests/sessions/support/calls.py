"""Calls of stores that may fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tenfold.breaker import Breaker
from tenfold.errors import SessionStoreError
from tests.support import waiting

NEVER_OPENS = Breaker(failures=10**9, ratio=2)


async def succeeds_eventually(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first result of ``call`` that is not a SessionStoreError."""
    return await waiting.succeeds_eventually(call, despite=SessionStoreError)


async def error_text(call: Awaitable[Any]) -> str:
    """Return the text of the SessionStoreError that ``call`` must raise."""
    with pytest.raises(SessionStoreError) as caught:
        await call
    return str(caught.value)
