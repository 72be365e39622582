"""Sessions stored by the client: the whole session, encrypted, is the value of its cookie."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import replace

from tenfold.errors import SessionError, SettingsError, TenfoldError
from tenfold.sessions.backend import Device, MissingSession, Sealer, StoredSession, add_to_principal
from tenfold.sessions.record import (
    ABSOLUTE_S,
    HANDLE_LENGTH,
    IDLE_S,
    Changes,
    Record,
    apply_changes,
    check_size,
    decode_record,
    encode_record,
    is_expired,
    is_idle,
    is_refresh_due,
    new_handle,
    principal_group,
)
from tenfold.sessions.stores.store import Store

__all__ = ["CookieSessions"]

CONTEXT = b"tenfold cookie session"
MAX_TOKEN_LENGTH = 3900  # of the 4,096 bytes that browsers keep, the rest is for the name
MAX_BYTES = 2800  # what fits into that, sealed and in Base64


class CookieSessions:
    """A backend without a server: nothing shared, no store to lose, no round trip.

        sealer = Sealer([key], purpose="sessions")
        app.add_middleware(SessionMiddleware, sessions=CookieSessions(sealer))

    What that costs: of concurrent requests the last response wins with *all* keys; a copied cookie can be
    replayed until it expires, which also undoes changes; a wall clock that is set back lets idle sessions
    live longer. Keep counters, carts and permissions on a server.

    Args:
        sealer: encrypts; anything with ``seal(data, context)`` and ``open(sealed, context)``.
        revocations: a store of the sessions that were ended. Without one, logout removes the cookie from that
            browser and cannot end a copy of it (:attr:`can_revoke` is False), and ``logout_everywhere`` is
            refused; with one, each request that reads its session costs one round trip.
        idle_s, absolute_s, clock: as for :class:`tenfold.sessions.ServerSessions`.
    """

    max_bytes = MAX_BYTES

    def __init__(
        self,
        sealer: Sealer,
        *,
        revocations: Store | None = None,
        idle_s: float = IDLE_S,
        absolute_s: float = ABSOLUTE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < idle_s <= absolute_s:
            raise SettingsError(f"sessions need 0 < idle_s <= absolute_s, not {idle_s=}, {absolute_s=}")
        self._sealer = sealer
        self._revocations = revocations
        self._idle_s = idle_s
        self._absolute_s = absolute_s
        self._clock = clock

    @property
    def can_revoke(self) -> bool:
        return self._revocations is not None

    # ------------------------------------------------------------------ outside of requests

    async def logout_everywhere(self, principal: str) -> None:
        """End every session of a principal.

        Raises:
            SessionError: there is no store of revocations.
        """
        for handle in await self._store().members(principal_group(principal)):
            await self._revoke(handle)

    async def devices(self, principal: str, *, current: str = "") -> list[Device]:
        """Raise SessionError: only the clients have the sessions."""
        raise SessionError("sessions kept in cookies cannot be listed: keep them in a store for that")

    async def revoke_device(self, principal: str, handle: str) -> bool:
        """End one session of a principal; False if it is not theirs."""
        if handle not in await self._store().members(principal_group(principal)):
            return False
        await self._revoke(handle)
        return True

    async def aclose(self) -> None:
        """Close the connections of the store of revocations."""
        if self._revocations is not None:
            await self._revocations.aclose()

    # ------------------------------------------------------------------ for the middleware

    def token(self, handle: str, secret: str) -> str:
        return ""

    async def load(self, token: str) -> StoredSession | MissingSession:
        stored = self._open(token)
        if stored is None:
            return MissingSession.UNKNOWN
        # The store has tombstones of ended sessions only.
        if self._revocations is not None and await self._revocations.read(stored.handle) is not None:
            return MissingSession.UNKNOWN
        return stored

    async def save(self, stored: StoredSession | None, changes: Changes) -> StoredSession:
        plain = replace(changes, secret="")  # the sealer's key takes the place of a secret
        now = self._clock()
        record = apply_changes(stored.record if stored else None, plain, now=now, absolute_s=self._absolute_s)
        # A new token is a new session here: a tombstone of the handle would end both.
        handle = new_handle() if stored and changes.secret else stored.handle if stored else changes.handle
        written = self._seal(handle, record)
        if self._revocations is not None and changes.secret:
            if record.principal is not None:
                left_s = record.ends - self._clock()
                await add_to_principal(
                    self._revocations, record.principal, handle, ttl_s=left_s, revoke=self._revoke
                )
            if stored:
                await self._revoke(stored.handle)
        return written

    async def refresh(self, stored: StoredSession) -> StoredSession:
        now = self._clock()
        if not is_refresh_due(now, stored.record.last_seen, self._idle_s):
            return stored
        return self._seal(stored.handle, apply_changes(stored.record, Changes(), now=now, absolute_s=0))

    async def revoke(self, stored: StoredSession) -> None:
        if self._revocations is not None:
            await self._revoke(stored.handle)

    # ------------------------------------------------------------------ one step each

    def _open(self, token: str) -> StoredSession | None:
        if len(token) > MAX_TOKEN_LENGTH:
            return None
        try:
            sealed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            plain = self._sealer.open(sealed, CONTEXT)
        except (TenfoldError, ValueError, binascii.Error):
            return None
        handle, record = plain[:HANDLE_LENGTH].decode(), decode_record(plain[HANDLE_LENGTH:])
        if record is None:
            return None
        now = self._clock()
        if is_expired(now, record.ends) or is_idle(now, record.last_seen, self._idle_s):
            return None
        return StoredSession(handle, 0, record)

    def _seal(self, handle: str, record: Record) -> StoredSession:
        payload = encode_record(record)
        check_size(len(payload), record.data, MAX_BYTES)
        token = base64.urlsafe_b64encode(self._sealer.seal(handle.encode() + payload, CONTEXT)).rstrip(b"=")
        check_size(len(token), record.data, MAX_TOKEN_LENGTH)
        return StoredSession(handle, 0, record, new_token=token.decode())

    async def _revoke(self, handle: str) -> None:
        await self._store().create(handle, b"ended", ttl_s=self._absolute_s)

    def _store(self) -> Store:
        if self._revocations is None:
            raise SessionError("sessions kept in cookies cannot be ended elsewhere: give them revocations=")
        return self._revocations
