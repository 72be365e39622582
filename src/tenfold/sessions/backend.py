"""The protocol between sessions and where they are stored: on a server, or in a cookie."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from tenfold.errors import SessionStoreError
from tenfold.sessions.record import Changes, Record, principal_group
from tenfold.sessions.stores.store import Store

__all__ = ["Device", "MissingSession", "Sealer", "SessionBackend", "StoredSession"]


class Sealer(Protocol):
    """Encryption with the newest key, decryption with any known key, as ``tenfold.signing.Sealer`` has it."""

    def seal(self, data: bytes, context: bytes, /) -> bytes:
        """Encrypt ``data``, bound to ``context``."""

    def open(self, sealed: bytes, context: bytes, /) -> bytes:
        """Decrypt data sealed with the same context; raises a TenfoldError or ValueError otherwise."""


class StoredSession:
    """A session as it was read or written.

    Attributes:
        handle: names the session.
        version: of that write; 0 where the backend has no versions.
        record: never changed in place, since others may hold it.
        new_token: to be sent to the client; empty if the client has it already.
        cached: whether it may be older than the store's.
    """

    __slots__ = ("cached", "handle", "new_token", "record", "version")

    def __init__(
        self, handle: str, version: int, record: Record, *, new_token: str = "", cached: bool = False
    ) -> None:
        self.handle = handle
        self.version = version
        self.record = record
        self.new_token = new_token
        self.cached = cached


class MissingSession(Enum):
    """The reason why a token has no session."""

    UNKNOWN = "unknown"  # never issued, expired or revoked
    REPLACED = "replaced"  # another request of this client was given a new token, seconds ago
    UNAVAILABLE = "unavailable"  # the store does not answer, and the route continues as anonymous


@dataclass(frozen=True, slots=True)
class Device:
    """One of a principal's sessions; times are seconds since 1970.

    Attributes:
        handle: names the session for ``revoke``; no credential.
        label: the device's name, as given to ``login``.
        created: time of the login.
        last_seen: exact to a tenth of the idle lifetime.
        current: whether it is the session of this request.
    """

    handle: str
    label: str
    created: float
    last_seen: float
    current: bool


class SessionBackend(Protocol):
    """Loads and saves sessions; every method may raise :class:`tenfold.errors.SessionStoreError`.

    Attributes:
        max_bytes: the largest session.
        can_revoke: whether a session can be ended before it expires.
    """

    @property
    def max_bytes(self) -> int: ...

    @property
    def can_revoke(self) -> bool: ...

    def token(self, handle: str, secret: str) -> str:
        """Return the token for the client; empty where it depends on the session's content."""

    async def load(self, token: str) -> StoredSession | MissingSession:
        """Return the session of a client's token."""

    async def save(self, stored: StoredSession | None, changes: Changes) -> StoredSession:
        """Apply the changes to the newest stored version; with None create a session.

        Raises:
            SessionEndedError: it was revoked, or its token replaced, since it was loaded.
            SessionSizeError: it would exceed ``max_bytes``.
        """

    async def refresh(self, stored: StoredSession) -> StoredSession:
        """Postpone the idle expiry, if that is due."""

    async def revoke(self, stored: StoredSession) -> None:
        """End a session; no later write restores it."""

    async def logout_everywhere(self, principal: str) -> None:
        """End every session of a principal."""

    async def devices(self, principal: str, *, current: str = "") -> list[Device]:
        """Return a principal's sessions, latest login first; ``current`` is the handle of this request's."""

    async def revoke_device(self, principal: str, handle: str) -> bool:
        """End one session of a principal; False if it is not theirs."""


MAX_ATTEMPTS = 64


async def add_to_principal(
    store: Store, principal: str, handle: str, *, ttl_s: float, revoke: Callable[[str], Awaitable[None]]
) -> None:
    """Add a session to its principal's list; where the list is full, revoke the oldest.

    No session of a principal exists unlisted: logging out everywhere would not reach it.
    """
    group, surplus = principal_group(principal), list[str]()
    for _ in range(MAX_ATTEMPTS):
        surplus = await store.add_member(group, handle, ttl_s=ttl_s, replacing=surplus)
        if not surplus:
            return
        for oldest in surplus:
            await revoke(oldest)
    raise SessionStoreError("too many logins of the same principal at the same moment: try again")
