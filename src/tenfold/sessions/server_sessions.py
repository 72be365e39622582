"""Sessions on a server, in any store: the client holds a token, everything else stays here."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tenfold.errors import SessionEndedError, SessionStoreError, SettingsError, TenfoldError
from tenfold.sessions.backend import (
    MAX_ATTEMPTS,
    Device,
    MissingSession,
    Sealer,
    StoredSession,
    add_to_principal,
)
from tenfold.sessions.record import (
    ABSOLUTE_S,
    IDLE_S,
    Changes,
    Record,
    apply_changes,
    check_size,
    decode_record,
    encode_record,
    is_expired,
    is_refresh_due,
    is_same_digest,
    principal_group,
    secret_digest,
    split_token,
    store_ttl_s,
)
from tenfold.sessions.stores.store import Store, StoredPayload

__all__ = ["ServerSessions"]

MAX_BYTES = 16_384
RECENT_ROTATION_S = 30.0
CACHE_ENTRIES = 10_000


class ServerSessions:
    """The sessions in a store: a backend for the middleware, and what can be done outside of requests.

        sessions = ServerSessions(RedisStore(url), idle_s=1800)
        app.add_middleware(SessionMiddleware, sessions=sessions)
        await sessions.logout_everywhere(user_id)   # after a change of password, say

    Args:
        store: holds the payloads; each operation is one round trip.
        idle_s: seconds without a request after which a session ends; up to a tenth earlier, since reads
            postpone the expiry at most that often.
        absolute_s: seconds after the login (or the first write, without one) at which it ends in any case.
        max_bytes: of one session.
        sealer: encrypts at rest, bound to the handle; turning it on or off ends all existing sessions.
        cache_ms: how long a session read here may be read again without asking the store. That is how late
            another instance's revocation or rotation may take effect here, and its writes be seen. Writes
            never rest on it.
        clock: seconds since 1970.
    """

    can_revoke = True

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
        """End every session of a principal that was saved before this call.

        A login that is being saved at the same time is ended or refused (409), if it was listed by then.

        Raises:
            SessionStoreError: some may not have ended; call it again.
        """
        for handle in await self._store.members(principal_group(principal)):
            await self._revoke(handle)

    async def devices(self, principal: str, *, current: str = "") -> list[Device]:
        """Return a principal's sessions, latest login first: two round trips."""
        handles = await self._store.members(principal_group(principal))
        found = zip(handles, await self._store.read_many(handles) if handles else [], strict=True)
        records = [(handle, self._decode(handle, payload)) for handle, payload in found]
        devices = [
            Device(handle, record.device, record.created, record.last_seen, handle == current)
            for handle, record in records
            if record is not None and record.principal == principal
        ]
        return sorted(devices, key=lambda device: device.created, reverse=True)

    async def revoke_device(self, principal: str, handle: str) -> bool:
        """End one session of a principal; False if it is not, or no longer, theirs."""
        if handle not in await self._store.members(principal_group(principal)):
            return False
        await self._revoke(handle)
        return True

    async def aclose(self) -> None:
        """Close the store's own connections."""
        await self._store.aclose()

    # ------------------------------------------------------------------ for the middleware

    def token(self, handle: str, secret: str) -> str:
        return f"{handle}.{secret}"

    async def load(self, token: str) -> StoredSession | MissingSession:
        if (parts := split_token(token)) is None:
            return MissingSession.UNKNOWN
        handle, secret = parts
        digest = secret_digest(secret)
        cache = self._cache
        if cache is None:
            at = 0.0
        else:
            # A cached record that does not fit the token may be older than the token: ask the store.
            if (found := cache.get(handle)) and is_same_digest(found[1].digest, digest):
                if is_expired(self._clock(), found[1].ends):
                    return MissingSession.UNKNOWN
                return StoredSession(handle, *found, cached=True)
            at = cache.clock()
        payload = await self._store.read(handle)
        record = self._decode(handle, payload)
        if payload is None or record is None:
            return MissingSession.UNKNOWN
        if not is_same_digest(record.digest, digest):
            recent = abs(self._clock() - record.rotated) < RECENT_ROTATION_S
            return MissingSession.REPLACED if recent else MissingSession.UNKNOWN
        if cache is not None:
            cache.put(handle, payload.version, record, at=at)
        return StoredSession(handle, payload.version, record)

    async def save(self, stored: StoredSession | None, changes: Changes) -> StoredSession:
        if changes.principal is not None:
            handle = stored.handle if stored else changes.handle
            await add_to_principal(
                self._store, changes.principal, handle, ttl_s=self._absolute_s, revoke=self._revoke
            )
        if stored is None:
            return await self._create(changes)
        for _ in range(MAX_ATTEMPTS):
            written, newer = await self._replace(stored, self._apply(stored.record, changes))
            if written is not None:
                written.new_token = self.token(stored.handle, changes.secret) if changes.secret else ""
                return written
            stored = self._rebase(stored, newer, changes)
        raise SessionStoreError(
            f"the session was changed by other requests {MAX_ATTEMPTS} times while this one tried to save: "
            "try again"
        )

    async def refresh(self, stored: StoredSession) -> StoredSession:
        now = self._clock()
        if not is_refresh_due(now, stored.record.last_seen, self._idle_s):
            return stored
        written, _ = await self._replace(
            stored, apply_changes(stored.record, Changes(), now=now, absolute_s=0)
        )
        return written or stored  # on a conflict the other request has refreshed it as well, or ended it

    async def revoke(self, stored: StoredSession) -> None:
        await self._revoke(stored.handle)

    # ------------------------------------------------------------------ one step each

    def _decode(self, handle: str, stored: StoredPayload | None) -> Record | None:
        """Decode a payload; None if it has expired, or was not written by this sealer and release."""
        if stored is None:
            return None
        payload = stored.payload
        if self._sealer is not None:
            try:
                payload = self._sealer.open(payload, handle.encode())
            except (TenfoldError, ValueError):
                return None
        record = decode_record(payload)
        return None if record is None or is_expired(self._clock(), record.ends) else record

    def _encode(self, handle: str, record: Record) -> bytes:
        payload = encode_record(record)
        check_size(len(payload), record.data, self.max_bytes)
        return self._sealer.seal(payload, handle.encode()) if self._sealer else payload

    def _apply(self, record: Record | None, changes: Changes) -> Record:
        return apply_changes(record, changes, now=self._clock(), absolute_s=self._absolute_s)

    def _ttl_s(self, record: Record) -> float:
        return store_ttl_s(self._clock(), record.ends, self._idle_s)

    async def _create(self, changes: Changes) -> StoredSession:
        handle, record = changes.handle, self._apply(None, changes)
        at = self._cache.clock() if self._cache else 0.0
        payload = self._encode(handle, record)
        if not await self._store.create(handle, payload, ttl_s=self._ttl_s(record)):
            raise _ended_error()  # revoked by logout_everywhere between the listing and now
        new_token = self.token(handle, changes.secret)
        return self._cache_written(StoredSession(handle, 1, record, new_token=new_token), at)

    async def _replace(
        self, stored: StoredSession, record: Record
    ) -> tuple[StoredSession | None, StoredPayload | None]:
        """Write a record; return what was written, or else the payload that is stored instead."""
        at = self._cache.clock() if self._cache else 0.0
        result = await self._store.replace(
            stored.handle,
            self._encode(stored.handle, record),
            version=stored.version,
            ttl_s=self._ttl_s(record),
        )
        if result is True:
            return self._cache_written(StoredSession(stored.handle, stored.version + 1, record), at), None
        if self._cache:
            self._cache.drop(stored.handle)
        return None, result or None

    def _cache_written(self, written: StoredSession, at: float) -> StoredSession:
        if self._cache:
            self._cache.put(written.handle, written.version, written.record, at=at)
        return written

    def _rebase(self, stored: StoredSession, newer: StoredPayload | None, changes: Changes) -> StoredSession:
        """Return the newer session, if this request may write to it.

        Its authority was the secret it came with. Where another request replaced that, only a login may
        continue: it brings credentials of its own, and only where the other one was a login of the same
        principal, as after a double click.
        """
        record = self._decode(stored.handle, newer)
        if newer is None or record is None:
            raise _ended_error()
        same_login = changes.principal is not None and record.principal == changes.principal
        if not is_same_digest(record.digest, stored.record.digest) and not same_login:
            raise _ended_error()
        return StoredSession(stored.handle, newer.version, record)

    async def _revoke(self, handle: str) -> None:
        if self._cache:
            self._cache.drop(handle)
        await self._store.revoke(handle, ttl_s=self._idle_s)
        if self._cache:  # a read that overtook the tombstone may have returned meanwhile
            self._cache.drop(handle)


def _ended_error() -> SessionEndedError:
    return SessionEndedError(
        "the session ended, or its token was replaced, while this request ran: its changes were not saved, "
        "the client may try again"
    )


@dataclass(slots=True)
class _CacheEntry:
    """A record read at ``at``; without one a marker: reads begun before ``at`` are not cached."""

    at: float
    version: int = 0
    record: Record | None = None


class RecordCache:
    """An LRU cache of records by handle, none older than ``max_age_ms``.

    The age counts from the moment at which the read *began*, so that the bound holds for a revocation that
    happened while the reply was on its way. This process's own revocations and writes take effect at once.

    Args:
        max_age_ms: how old a record may be; 0 caches nothing.
        max_entries: the least recently used goes first.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        max_age_ms: float,
        *,
        max_entries: int = CACHE_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_age_s = max_age_ms / 1000
        self._max_entries = max_entries
        self._entries: OrderedDict[str, _CacheEntry] = OrderedDict()
        self.clock = clock

    def get(self, handle: str) -> tuple[int, Record] | None:
        """Return version and record."""
        entry = self._entries.get(handle)
        if entry is None or entry.record is None:
            return None
        if self.clock() - entry.at >= self._max_age_s:
            del self._entries[handle]
            return None
        self._entries.move_to_end(handle)
        return entry.version, entry.record

    def put(self, handle: str, version: int, record: Record, *, at: float) -> None:
        """Cache a record whose read or write began ``at``, unless it was dropped since then."""
        entry = self._entries.get(handle)
        if entry and (entry.version > version or (entry.record is None and entry.at >= at)):
            return
        self._set(handle, _CacheEntry(at, version, record))

    def drop(self, handle: str) -> None:
        """Remove a record, also one whose read is still under way."""
        self._set(handle, _CacheEntry(self.clock()))

    def _set(self, handle: str, entry: _CacheEntry) -> None:
        if self._max_age_s <= 0:
            return
        self._entries[handle] = entry
        self._entries.move_to_end(handle)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
