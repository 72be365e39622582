"""Sessions kept on a server, in any store: the client holds a token, everything else stays here."""

from __future__ import annotations

import time
from collections.abc import Callable

from tenfold.errors import SessionEndedError, SessionStoreError, SettingsError, TenfoldError
from tenfold.sessions import tokens
from tenfold.sessions.backend import Device, Kept, Missing, Sealer
from tenfold.sessions.cache import RecordCache
from tenfold.sessions.changes import Changes, apply
from tenfold.sessions.record import (
    ABSOLUTE_S,
    IDLE_S,
    Record,
    check_size,
    decode,
    encode,
    is_due,
    is_over,
    lifetime_s,
)
from tenfold.sessions.stores.store import Store, Stored, enlist

__all__ = ["Sessions"]

MAX_BYTES = 16_384
TRIES = 64
JUST_REPLACED_S = 30.0


class Sessions:
    """The sessions in a store: what the middleware asks, and what is done to them outside of requests.

        sessions = Sessions(RedisStore(url), idle_s=1800)
        app.add_middleware(SessionMiddleware, sessions=sessions)
        await sessions.logout_everywhere(user_id)   # after a change of password, say

    Args:
        store: where payloads are; each operation is one round trip.
        idle_s: seconds without a request after which a session is over; it may be up to a tenth less, since
            reads write at most that often.
        absolute_s: seconds after the login (or the beginning, without one) at which it is over in any case.
        max_bytes: of one session.
        sealer: encrypts at rest, bound to the handle; turning it on or off ends the sessions of before.
        cache_ms: how long a session read here may be read again without asking the store. That is how late
            another instance's revocation or rotation may take effect here, and its writes be seen. Writes
            never rest on it.
        clock: seconds since 1970.
    """

    revocable = True

    def __init__(
        self,
        store: Store,
        *,
        idle_s: float = IDLE_S,
        absolute_s: float = ABSOLUTE_S,
        max_bytes: int = MAX_BYTES,
        sealer: Sealer | None = None,
        cache_ms: float = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < idle_s <= absolute_s or max_bytes < 256 or cache_ms < 0:
            raise SettingsError(
                "sessions need 0 < idle_s <= absolute_s, max_bytes >= 256 and cache_ms >= 0, "
                f"not {idle_s=}, {absolute_s=}, {max_bytes=}, {cache_ms=}"
            )
        self.max_bytes = max_bytes
        self._store = store
        self._idle_s = idle_s
        self._absolute_s = absolute_s
        self._sealer = sealer
        self._cache = RecordCache(cache_ms) if cache_ms else None
        self._clock = clock

    # ------------------------------------------------------------------ outside of requests

    async def logout_everywhere(self, principal: str) -> None:
        """Ends every session of a principal that had been saved when this was called.

        A login that is being saved at the same time is ended or refused (409), if it was listed by then.

        Raises:
            SessionStoreError: some may not have ended; call it again.
        """
        for handle in await self._store.members(tokens.group(principal)):
            await self._end(handle)

    async def devices(self, principal: str, *, current: str = "") -> list[Device]:
        """A principal's sessions, latest login first: two round trips."""
        handles = await self._store.members(tokens.group(principal))
        found = zip(handles, await self._store.read_many(handles) if handles else [], strict=True)
        records = [(handle, self._record(handle, stored)) for handle, stored in found]
        devices = [
            Device(handle, record.device, record.created, record.seen, handle == current)
            for handle, record in records
            if record is not None and record.principal == principal
        ]
        return sorted(devices, key=lambda device: device.created, reverse=True)

    async def revoke_device(self, principal: str, handle: str) -> bool:
        """Ends one session of a principal; False when it is not, or no longer, theirs."""
        if handle not in await self._store.members(tokens.group(principal)):
            return False
        await self._end(handle)
        return True

    async def aclose(self) -> None:
        """Closes the store's own connections."""
        await self._store.aclose()

    # ------------------------------------------------------------------ for the middleware

    def token(self, handle: str, secret: str) -> str:
        return f"{handle}.{secret}"

    async def load(self, token: str) -> Kept | Missing:
        if (parts := tokens.split(token)) is None:
            return Missing.UNKNOWN
        handle, secret = parts
        digest = tokens.digest(secret)
        cache = self._cache
        if cache is None:
            at = 0.0
        else:
            # A cached record that the token does not fit may be older than the token: the store decides.
            if (found := cache.get(handle)) and tokens.is_same(found[1].digest, digest):
                over = is_over(self._clock(), found[1].ends)
                return Missing.UNKNOWN if over else Kept(handle, *found, cached=True)
            at = cache.clock()
        stored = await self._store.read(handle)
        record = self._record(handle, stored)
        if stored is None or record is None:
            return Missing.UNKNOWN
        if not tokens.is_same(record.digest, digest):
            recent = abs(self._clock() - record.rotated) < JUST_REPLACED_S
            return Missing.REPLACED if recent else Missing.UNKNOWN
        if cache is not None:
            cache.put(handle, stored.version, record, at=at)
        return Kept(handle, stored.version, record)

    async def save(self, kept: Kept | None, changes: Changes) -> Kept:
        if changes.principal is not None:
            handle = kept.handle if kept else changes.handle
            await enlist(self._store, changes.principal, handle, ttl_s=self._absolute_s, end=self._end)
        if kept is None:
            return await self._create(changes)
        for _ in range(TRIES):
            written, newer = await self._replace(kept, self._applied(kept.record, changes))
            if written is not None:
                written.token = self.token(kept.handle, changes.secret) if changes.secret else ""
                return written
            kept = self._still(kept, newer, changes)
        raise SessionStoreError(
            f"the session was changed by other requests {TRIES} times while this one tried to save: try again"
        )

    async def refresh(self, kept: Kept) -> Kept:
        now = self._clock()
        if not is_due(now, kept.record.seen, self._idle_s):
            return kept
        written, _ = await self._replace(kept, apply(kept.record, Changes(), now=now, absolute_s=0))
        return written or kept  # whoever came first has refreshed it as well, or ended it

    async def revoke(self, kept: Kept) -> None:
        await self._end(kept.handle)

    # ------------------------------------------------------------------ one step each

    def _record(self, handle: str, stored: Stored | None) -> Record | None:
        """What a payload says; None where it is over, or nothing that this sealer and release wrote."""
        if stored is None:
            return None
        payload = stored.payload
        if self._sealer is not None:
            try:
                payload = self._sealer.open(payload, handle.encode())
            except (TenfoldError, ValueError):
                return None
        record = decode(payload)
        return None if record is None or is_over(self._clock(), record.ends) else record

    def _applied(self, record: Record | None, changes: Changes) -> Record:
        return apply(record, changes, now=self._clock(), absolute_s=self._absolute_s)

    def _payload(self, handle: str, record: Record) -> bytes:
        payload = encode(record)
        check_size(len(payload), record.data, self.max_bytes)
        return self._sealer.seal(payload, handle.encode()) if self._sealer else payload

    def _ttl_s(self, record: Record) -> float:
        return lifetime_s(self._clock(), record.ends, self._idle_s)

    async def _create(self, changes: Changes) -> Kept:
        handle, record = changes.handle, self._applied(None, changes)
        at = self._cache.clock() if self._cache else 0.0
        payload = self._payload(handle, record)
        if not await self._store.create(handle, payload, ttl_s=self._ttl_s(record)):
            raise _ended()  # revoked by logout_everywhere between the listing and now
        return self._written(Kept(handle, 1, record, token=self.token(handle, changes.secret)), at)

    async def _replace(self, kept: Kept, record: Record) -> tuple[Kept | None, Stored | None]:
        """What was written, or else what is kept instead."""
        at = self._cache.clock() if self._cache else 0.0
        answer = await self._store.replace(
            kept.handle,
            self._payload(kept.handle, record),
            version=kept.version,
            ttl_s=self._ttl_s(record),
        )
        if answer is True:
            return self._written(Kept(kept.handle, kept.version + 1, record), at), None
        if self._cache:
            self._cache.drop(kept.handle)
        return None, answer or None

    def _written(self, kept: Kept, at: float) -> Kept:
        if self._cache:
            self._cache.put(kept.handle, kept.version, kept.record, at=at)
        return kept

    def _still(self, kept: Kept, newer: Stored | None, changes: Changes) -> Kept:
        """The newer record, if this request may write to it.

        Its right was the secret it came with. Where another request replaced that, only a login goes on: it
        brings credentials of its own, and only where the other one was a login of the same principal, as
        after a double click.
        """
        record = self._record(kept.handle, newer)
        if newer is None or record is None:
            raise _ended()
        same_login = changes.principal is not None and record.principal == changes.principal
        if not tokens.is_same(record.digest, kept.record.digest) and not same_login:
            raise _ended()
        return Kept(kept.handle, newer.version, record)

    async def _end(self, handle: str) -> None:
        if self._cache:
            self._cache.drop(handle)
        await self._store.revoke(handle, ttl_s=self._idle_s)
        if self._cache:  # a read that overtook the tombstone may have come back meanwhile
            self._cache.drop(handle)


def _ended() -> SessionEndedError:
    return SessionEndedError(
        "the session ended, or its token was replaced, while this request ran: its changes were not kept, "
        "the client may try again"
    )
