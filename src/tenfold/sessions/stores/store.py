"""The protocol of a session store: opaque payloads by handle, never restored after a revocation.

A store knows neither users nor keys of a session: it sees a *handle* (the lookup key), a payload and a
lifetime. Test a store of your own with :mod:`tenfold.sessions.stores.contract`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Store", "StoredPayload"]


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A payload and its version.

    Attributes:
        version: grows by one with every write of the same handle, from 1.
        payload: the bytes that were written.
    """

    version: int
    payload: bytes


def is_tls_error(error: BaseException | None) -> bool:
    """Return whether TLS failed, a certificate as a rule, and not the network: by the chain of causes."""
    while error is not None:
        if type(error).__module__ == "ssl" or "certificate" in str(error).lower() or "SSL" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class Store(Protocol):
    """Payloads by handle, each with a lifetime, a version and, once revoked, a tombstone.

    Handles are at most 64 characters of ``A–Z a–z 0–9 - _``. Lifetimes are seconds. Each method takes one
    round trip. When the server cannot be reached, or does not answer within the store's own (short) timeout,
    every method raises :class:`tenfold.errors.SessionStoreError`; a write may or may not have happened then.
    """

    async def read(self, handle: str) -> StoredPayload | None:
        """Return the payload; None if it was never written, has expired or was revoked."""

    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        """Return what :meth:`read` would, in the order of ``handles``."""

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        """Write version 1 of a new handle; False if there is a payload or a tombstone already."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        """Compare and set: write ``version + 1`` if the stored version is ``version``.

        Returns True if it was written; otherwise the payload that is stored instead, or None if there is
        none: it expired or was revoked meanwhile. Never creates.
        """

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        """Write a tombstone, whether or not there is a payload; it outlives every late write.

        ``ttl_s`` is how long a payload of this handle could still have lived.
        """

    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        """Add ``handle`` to ``group`` (a digest of a principal), for ``ttl_s`` at least.

        Called before the session itself is written: a group may name handles that are gone, but never lacks
        one. So a full group (1,000) accepts no new member: it returns the members that expire first and have
        to leave. The caller revokes them and calls again with them as ``replacing``; they leave the group in
        the same step. An empty list: the handle was added.
        """

    async def members(self, group: str) -> list[str]:
        """Return the handles of ``group`` that have not expired, oldest first; 1,000 at most."""

    async def aclose(self) -> None:
        """Close the connections that the store itself opened."""
