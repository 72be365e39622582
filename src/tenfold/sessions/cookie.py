"""Sessions kept by the client: the whole of one, encrypted, is the value of its cookie."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import replace

from tenfold.errors import SessionError, SettingsError, TenfoldError
from tenfold.sessions import tokens
from tenfold.sessions.backend import Device, Kept, Missing, Sealer
from tenfold.sessions.changes import Changes, apply
from tenfold.sessions.record import (
    ABSOLUTE_S,
    IDLE_S,
    Record,
    check_size,
    decode,
    encode,
    is_due,
    is_idle,
    is_over,
)
from tenfold.sessions.stores.store import Store, enlist

__all__ = ["CookieSessions"]

CONTEXT = b"tenfold cookie session"
MOST_TOKEN = 3900  # of the 4,096 bytes that browsers keep, the rest is for the name
MAX_BYTES = 2800  # as many bytes as fit, sealed and in Base64, into that


class CookieSessions:
    """Nothing is kept on a server, and hence nothing shared: no store to lose, and none to ask.

        sealer = Sealer([key], purpose="sessions")
        app.add_middleware(SessionMiddleware, sessions=CookieSessions(sealer))

    What that costs: of concurrent requests the last answer wins with *all* keys; whoever copied a cookie can
    play it back until it expires, changes undone by that included; a wall clock that is set back lets idle
    sessions live longer. Keep counters, carts and rights on a server.

    Args:
        sealer: encrypts; anything with ``seal(data, context)`` and ``open(sealed, context)``.
        revocations: a store of the sessions that were ended. Without one, logout removes the cookie from that
            browser and cannot touch a copy of it (:attr:`revocable` is False), and ``logout_everywhere`` is
            refused; with one, each request that reads its session costs one round trip.
        idle_s, absolute_s, clock: as for :class:`tenfold.sessions.Sessions`.
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
    def revocable(self) -> bool:
        return self._revocations is not None

    # ------------------------------------------------------------------ outside of requests

    async def logout_everywhere(self, principal: str) -> None:
        """Ends every session of a principal.

        Raises:
            SessionError: there is no store of revocations.
        """
        for handle in await self._store().members(tokens.group(principal)):
            await self._end(handle)

    async def devices(self, principal: str, *, current: str = "") -> list[Device]:
        """Raises SessionError: nobody but the clients has the sessions."""
        raise SessionError("sessions kept in cookies cannot be listed: keep them in a store for that")

    async def revoke_device(self, principal: str, handle: str) -> bool:
        """Ends one session of a principal; False when it is not theirs."""
        if handle not in await self._store().members(tokens.group(principal)):
            return False
        await self._end(handle)
        return True

    async def aclose(self) -> None:
        """Closes the connections of the store of revocations."""
        if self._revocations is not None:
            await self._revocations.aclose()

    # ------------------------------------------------------------------ for the middleware

    def token(self, handle: str, secret: str) -> str:
        return ""

    async def load(self, token: str) -> Kept | Missing:
        kept = self._opened(token)
        if kept is None:
            return Missing.UNKNOWN
        # The store has a mark for what was ended, and nothing for what lives.
        if self._revocations is not None and await self._revocations.read(kept.handle) is not None:
            return Missing.UNKNOWN
        return kept

    async def save(self, kept: Kept | None, changes: Changes) -> Kept:
        plain = replace(changes, secret="")  # what opens a cookie is the sealer's key
        record = apply(kept.record if kept else None, plain, now=self._clock(), absolute_s=self._absolute_s)
        # A new token is a new session here: its content cannot be told apart otherwise.
        handle = tokens.new_handle() if kept and changes.secret else kept.handle if kept else changes.handle
        written = self._sealed(handle, record)
        if self._revocations is not None and changes.secret:
            if record.principal is not None:
                left_s = record.ends - self._clock()
                await enlist(self._revocations, record.principal, handle, ttl_s=left_s, end=self._end)
            if kept:
                await self._end(kept.handle)
        return written

    async def refresh(self, kept: Kept) -> Kept:
        now = self._clock()
        if not is_due(now, kept.record.seen, self._idle_s):
            return kept
        return self._sealed(kept.handle, apply(kept.record, Changes(), now=now, absolute_s=0))

    async def revoke(self, kept: Kept) -> None:
        if self._revocations is not None:
            await self._end(kept.handle)

    # ------------------------------------------------------------------ one step each

    def _opened(self, token: str) -> Kept | None:
        if len(token) > MOST_TOKEN:
            return None
        try:
            sealed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            plain = self._sealer.open(sealed, CONTEXT)
        except (TenfoldError, ValueError, binascii.Error):
            return None
        handle, record = plain[: tokens.HANDLE_CHARACTERS].decode(), decode(plain[tokens.HANDLE_CHARACTERS :])
        if record is None:
            return None
        now = self._clock()
        if is_over(now, record.ends) or is_idle(now, record.seen, self._idle_s):
            return None
        return Kept(handle, 0, record)

    def _sealed(self, handle: str, record: Record) -> Kept:
        payload = encode(record)
        check_size(len(payload), record.data, MAX_BYTES)
        token = base64.urlsafe_b64encode(self._sealer.seal(handle.encode() + payload, CONTEXT)).rstrip(b"=")
        check_size(len(token), record.data, MOST_TOKEN)
        return Kept(handle, 0, record, token=token.decode())

    async def _end(self, handle: str) -> None:
        await self._store().create(handle, b"ended", ttl_s=self._absolute_s)

    def _store(self) -> Store:
        if self._revocations is None:
            raise SessionError("sessions kept in cookies cannot be ended elsewhere: give them revocations=")
        return self._revocations
