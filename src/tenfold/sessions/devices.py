"""No session of a principal lives unlisted: logging out everywhere would not reach it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tenfold.errors import SessionStoreError
from tenfold.sessions import tokens
from tenfold.sessions.store import Store

TRIES = 64


async def enlist(
    store: Store, principal: str, handle: str, *, ttl_s: float, end: Callable[[str], Awaitable[None]]
) -> None:
    """Lists a session under its principal; where the list is full, the oldest are ended."""
    group, surplus = tokens.group(principal), list[str]()
    for _ in range(TRIES):
        surplus = await store.enlist(group, handle, ttl_s=ttl_s, instead_of=surplus)
        if not surplus:
            return
        for oldest in surplus:
            await end(oldest)
    raise SessionStoreError("too many logins of the same principal at the same moment: try again")
