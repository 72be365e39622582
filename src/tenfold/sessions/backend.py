"""Where sessions are kept: the shape that those on a server and those in a cookie share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from tenfold.sessions.changes import Changes
from tenfold.sessions.record import Record

__all__ = ["Device", "Keeper", "Kept", "Missing", "Sealer"]


class Sealer(Protocol):
    """Encrypts with the newest key and opens with any that is known, as ``tenfold.signing.Sealer`` does."""

    def seal(self, data: bytes, context: bytes, /) -> bytes:
        """Encrypted, bound to ``context``."""

    def open(self, sealed: bytes, context: bytes, /) -> bytes:
        """What was sealed with that context; otherwise raises a TenfoldError or ValueError."""


class Kept:
    """A session as it was found or written.

    Attributes:
        handle: which one.
        version: of that write; 0 where nobody counts.
        record: never changed in place, since others may hold it.
        token: what the client has to be told from now on; empty when it knows.
        cached: whether it may be older than what the store has.
    """

    __slots__ = ("cached", "handle", "record", "token", "version")

    def __init__(
        self, handle: str, version: int, record: Record, *, token: str = "", cached: bool = False
    ) -> None:
        self.handle = handle
        self.version = version
        self.record = record
        self.token = token
        self.cached = cached


class Missing(Enum):
    """Why a token opens nothing."""

    UNKNOWN = "unknown"  # never issued, expired or revoked
    REPLACED = "replaced"  # another request of this client has been given a new one, seconds ago
    UNREAD = "unread"  # nobody knows: the store does not answer, and the route goes on as anonymous


@dataclass(frozen=True, slots=True)
class Device:
    """One of a principal's sessions; times are seconds since 1970.

    Attributes:
        handle: names the session, and opens nothing; what ``revoke`` takes.
        label: what the login called the device.
        created: when it logged in.
        last_seen: exact to a tenth of the idle lifetime.
        current: whether it is the one that asks.
    """

    handle: str
    label: str
    created: float
    last_seen: float
    current: bool


class Keeper(Protocol):
    """Keeps sessions; every method may raise :class:`tenfold.errors.SessionStoreError`.

    Attributes:
        max_bytes: what a session may hold.
        revocable: whether a session can be ended before it expires on its own.
    """

    @property
    def max_bytes(self) -> int: ...

    @property
    def revocable(self) -> bool: ...

    def token(self, handle: str, secret: str) -> str:
        """What a client will hold; empty where that depends on what is kept."""

    async def load(self, token: str) -> Kept | Missing:
        """What a client's token opens."""

    async def save(self, kept: Kept | None, changes: Changes) -> Kept:
        """Applies the changes to the newest that is kept; with None begins a session.

        Raises:
            SessionEndedError: it was revoked, or its token replaced, since it was loaded.
            SessionSizeError: it would hold too much.
        """

    async def refresh(self, kept: Kept) -> Kept:
        """Pushes the idle expiry back, where that is due."""

    async def revoke(self, kept: Kept) -> None:
        """Ends a session; no later write brings it back."""

    async def logout_everywhere(self, principal: str) -> None:
        """Ends every session of a principal."""

    async def devices(self, principal: str, *, current: str = "") -> list[Device]:
        """A principal's sessions, latest login first; ``current`` is the handle of the one that asks."""

    async def revoke_device(self, principal: str, handle: str) -> bool:
        """Ends one session of a principal; False when it is not theirs."""
