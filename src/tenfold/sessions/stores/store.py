"""What a session store has to do: keep opaque payloads, and never bring a revoked one back.

A store knows neither users nor keys of a session: it sees a *handle* (what is looked up), a payload and a
lifetime. Whoever writes one of their own runs :mod:`tenfold.sessions.stores.contract` against it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tenfold.errors import SessionStoreError
from tenfold.sessions import tokens

__all__ = ["Store", "Stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A payload and which write it is from.

    Attributes:
        version: grows with every write of the same handle, from 1.
        payload: what was written, byte for byte.
    """

    version: int
    payload: bytes


class Store(Protocol):
    """Payloads by handle, each with a lifetime, a version and, once revoked, a tombstone.

    Handles are at most 64 characters of ``A–Z a–z 0–9 - _``. Lifetimes are seconds. Each method takes one
    round trip. When the server cannot be reached, or does not answer in the store's own (short) timeout,
    every method raises :class:`tenfold.errors.SessionStoreError`; a write may or may not have happened then.
    """

    async def read(self, handle: str) -> Stored | None:
        """What is kept; None when it was never written, has expired or was revoked."""

    async def read_many(self, handles: Sequence[str]) -> list[Stored | None]:
        """As :meth:`read`, in the order of ``handles``."""

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        """Writes version 1 where nothing is; False when there is something, be it a tombstone."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        """Compare and set: writes ``version + 1`` if ``version`` is what is kept.

        True when it was written; otherwise what is kept instead, or None when nothing is: expired or revoked
        meanwhile. Never creates.
        """

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        """Puts a tombstone in place of whatever is there or is not; it outlives every late write.

        ``ttl_s`` is how long a payload of this handle could still have lived.
        """

    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        """Remembers that ``handle`` belongs to ``group`` (a digest of a principal), for ``ttl_s`` at least.

        Called before the write that makes it so: a group may name handles that are gone, never lack one. So a
        full group (1,000) takes nobody: the answer is then who has to go first, the ones that are over first.
        Whoever called revokes them and calls again, with them as ``instead_of``, which leave the group in the
        same step. An empty answer: it is remembered.
        """

    async def members(self, group: str) -> list[str]:
        """The handles of ``group`` whose time is not over, oldest first; 1,000 at most."""

    async def aclose(self) -> None:
        """Gives back connections that the store itself opened."""


# No session of a principal lives unlisted: logging out everywhere would not reach it.
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
