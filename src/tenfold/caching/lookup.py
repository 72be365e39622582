"""A lookup, step by step: read, judge, load once, store. One generator for threads and asyncio.

It yields what it needs done (:class:`~tenfold.caching.stores.Execute`, :class:`Load`, :class:`Wait` …), and
is sent the outcome; it touches no socket itself.
"""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tenfold.caching.core import Call, Core
from tenfold.caching.entry import Entry, Serving, Tag, covers, judge, required_token
from tenfold.caching.flights import Flight
from tenfold.caching.stores import Found, Steps, StoreDownError, lease_name, new_tag
from tenfold.caching.values import UnstorableError
from tenfold.positions import Token

__all__ = ["AskPrimary", "Load", "Loaded", "Pause", "Wait", "invalidate", "look_up", "send_pending"]

_ROUNDS = 5
# A flight's outcome: the load failed, or its value may not be shared, so that followers load themselves.
_FAILED = object()


@dataclass(frozen=True, slots=True)
class Load:
    """Call the function; the reply is a :class:`Loaded`.

    Attributes:
        required: what the load has to include.
        is_limited: it goes past the cache, so that only so many run at once.
    """

    required: Token | None = None
    is_limited: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for a flight's outcome, at most so many seconds; the reply is None after that."""

    future: Future[Any]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AskPrimary:
    """Ask the primary for its position; the reply is None if it does not say."""


@dataclass(slots=True)
class Loaded:
    """A loaded value and what is known of the load.

    Attributes:
        token: a position that the value includes; None without a fence.
        on_primary: whether it was read there.
        obstacle: why it must not be stored; empty if it may.
        tables: names of the tables that were read, as far as SQLAlchemy shows them.
    """

    value: Any
    token: Token | None = None
    on_primary: bool = True
    obstacle: str = ""
    tables: frozenset[str] = frozenset()
    seconds: float = 0.0


def look_up(cache: Core, call: Call, *, renews: bool = False) -> Steps[Any]:
    """Return the value of a call, from the store or loaded.

    Args:
        renews: load it although there is an entry.
    """
    for _ in range(_ROUNDS):
        epoch = cache.memory.epoch
        call.tables = call.function.known_tables()
        try:
            if cache.pending:
                yield from send_pending(cache)
            found = yield from _read(cache, call)
        except StoreDownError:
            return (yield from _load_directly(cache, call, "error"))
        if not renews and (value := _serve(cache, call, found, epoch)) is not _FAILED:
            return value
        try:
            if not (yield from _complete_tags(cache, call, found)):
                return (yield from _load_directly(cache, call, "error"))
        except StoreDownError:
            return (yield from _load_directly(cache, call, "error"))
        generations = [tag.generation for tag in found.tags.values() if tag]
        flight, leads = cache.flights.join((call.key, *generations))
        if leads:
            lease = _Lease(lease_name(call.key, generations), call.function.lease_s)
            return (yield from _lead(cache, call, found, flight, epoch, lease))
        outcome = yield Wait(flight.future, cache.wait_s)
        if outcome is _FAILED:
            return (yield from _load_directly(cache, call, "load"))
        if isinstance(outcome, Entry) and (
            call.token is None or not outcome.follows or covers(outcome, call.token)
        ):
            try:
                return cache.decode(call.function, outcome, "coalesced")
            except UnstorableError:
                pass
    return (yield from _load_directly(cache, call, "load"))


def _read(cache: Core, call: Call, *, lease: str = "") -> Steps[Found]:
    """Read an entry and its tags; those that only the entry names, afterwards."""
    found = yield from cache.store.read(call.key, call.names(), lease=lease)
    if found.entry is not None:
        unread = [name for name, _ in found.entry.tags if name not in found.tags]
        if unread:
            more = yield from cache.store.read("", unread)
            found.tags |= more.tags
            call.function.learn_tables(unread)
    return found


def _serve(cache: Core, call: Call, found: Found, epoch: int) -> Any:
    """Return the value of what was found; _FAILED if it may not be served."""
    if found.entry is None or (cache.is_durable and not found.has_watermark):
        return _FAILED
    serving = judge(found.entry, found.generations(), call.token, now=time.time(), watermark=found.watermark)
    if serving is Serving.MISS:
        return _FAILED
    try:
        value = cache.decode(call.function, found.entry, "redis")
    except UnstorableError:
        return _FAILED
    cache.memory.keep(call.key, found.entry, epoch=epoch)
    if serving is Serving.REFRESH:
        cache.refresh(call)
    return value


def _complete_tags(cache: Core, call: Call, found: Found) -> Steps[bool]:
    """Give missing tags a generation, at the primary's position: earlier commits are before it."""
    missing = [name for name in call.names() if found.tags.get(name) is None]
    if missing:
        token = None
        if cache.fence is not None and any(not name.startswith("@") for name in missing):
            token = yield AskPrimary()
            if token is None and cache.fence.has_positions:
                return False
        found.tags |= yield from cache.store.create_tags(missing, token)
    found.tags = {name: found.tags.get(name) for name in call.names()}
    return all(found.tags.values())


def _load_directly(cache: Core, call: Call, outcome: str) -> Steps[Any]:
    """Load without the cache."""
    cache.count(call.function, outcome)
    loaded: Loaded = yield Load(call.token, is_limited=True)
    return loaded.value


@dataclass(slots=True)
class _Lease:
    """The right to load a value, which ends by itself; another process may have it."""

    name: str
    ttl: float
    is_held: bool = False
    started: float = field(default_factory=time.monotonic)

    def is_certain(self) -> bool:
        """Return whether it is still held, for sure."""
        return self.is_held and time.monotonic() - self.started < 0.9 * self.ttl


def _lead(cache: Core, call: Call, found: Found, flight: Flight, epoch: int, lease: _Lease) -> Steps[Any]:
    """Load for all that wait for the same value, here and in other processes."""
    outcome: Any = None  # cancelled: the next one leads
    try:
        try:
            lease.is_held = yield from cache.store.take_lease(lease.name, ttl=lease.ttl)
            entry = None if lease.is_held else (yield from _await_other(cache, call, found, lease))
            if entry is not None:
                outcome = entry
                cache.memory.keep(call.key, entry, epoch=epoch)
                return cache.decode(call.function, entry, "coalesced")
        except (StoreDownError, UnstorableError):
            pass
        try:
            loaded, outcome = yield from _load_and_store(cache, call, found, epoch, lease)
        except Exception:
            outcome = _FAILED
            raise
        return loaded.value
    except GeneratorExit:
        lease.is_held = False  # no more steps can be taken
        raise
    finally:
        flight.finish(outcome)
        if lease.is_certain():
            with contextlib.suppress(StoreDownError):
                yield from cache.store.release_lease(lease.name)


def _load_and_store(
    cache: Core, call: Call, found: Found, epoch: int, lease: _Lease
) -> Steps[tuple[Loaded, Any]]:
    """Load, store if it may be, and return the flight's outcome, too."""
    tags = {name: tag for name, tag in found.tags.items() if tag}
    loaded: Loaded = yield Load(required_token(call.token, tags.values()))
    cache.count(call.function, "load")
    call.function.record_load(loaded.seconds)
    if not loaded.obstacle and call.function.derives_tags and not loaded.tables <= set(call.tables):
        call.function.learn_tables(loaded.tables)  # their tags were not read before the load
        return loaded, None
    entry = _make_entry(cache, call, tags, loaded)
    if entry is None:
        return loaded, _FAILED
    if call.function.derives_tags and not call.tables:
        cache.warn_once(
            call.function,
            f"{call.function.name} reads no table that SQLAlchemy shows, so that only its ttl ends it: name "
            "its tags=",
        )
    is_ours, lease.is_held = lease.is_certain(), False
    with contextlib.suppress(StoreDownError):
        ttl = entry.expires_at - time.time()
        yield from cache.store.put(call.key, entry, ttl=ttl, lease=lease.name if is_ours else "")
        cache.memory.keep(call.key, entry, epoch=epoch)
    return loaded, entry


def _await_other(cache: Core, call: Call, found: Found, lease: _Lease) -> Steps[Entry | None]:
    """Wait for the entry that another process loads; or its lease, when that process has died or failed."""
    pause, until = 0.005, time.monotonic() + cache.wait_s
    while time.monotonic() < until:
        yield Pause(pause * random.uniform(0.7, 1.3))  # noqa: S311
        pause = min(pause * 1.5, 0.05)
        other = yield from _read(cache, call, lease=lease.name)
        if other.entry is not None and (not cache.is_durable or other.has_watermark):
            serving = judge(
                other.entry, other.generations(), call.token, now=time.time(), watermark=other.watermark
            )
            if serving is not Serving.MISS:
                return other.entry
        if {name: tag and tag.generation for name, tag in found.tags.items()} != {
            name: other.generations().get(name) for name in found.tags
        }:
            return None  # invalidated meanwhile: what the other one loads is of no use
        if not other.is_leased:
            lease.started = time.monotonic()
            lease.is_held = yield from cache.store.take_lease(lease.name, ttl=lease.ttl)
            if lease.is_held:
                return None
    return None


def _make_entry(cache: Core, call: Call, tags: dict[str, Tag], loaded: Loaded) -> Entry | None:
    """The entry of a loaded value; None if it must not be stored, which is counted."""
    function = call.function
    if loaded.obstacle:
        cache.note_unstored(function, loaded.obstacle)
        return None
    try:
        value = function.codec.encode(loaded.value)
    except UnstorableError as error:
        cache.note_unstored(function, str(error))
        return None
    expires_s, fresh_s = function.lifetimes(loaded.value)
    now = time.time() - loaded.seconds
    return Entry(
        value=value,
        tags=tuple((name, tag.generation) for name, tag in tags.items()),
        token=loaded.token.pack() if loaded.token else b"",
        on_primary=loaded.on_primary,
        fresh_until=now + fresh_s,
        expires_at=now + expires_s,
        # Where tags are derived and none was found, such as of raw SQL, positions still are looked at.
        follows=function.derives_tags or any(not name.startswith("@") for name in tags),
    )


def invalidate(cache: Core, tags: dict[str, Tag]) -> Steps[bool]:
    """Renew tags; False if Redis did not take it: it is sent again before this process reads there again."""
    try:
        yield from _renew(cache, tags)
    except StoreDownError:
        cache.pending.add(tags)
        return False
    return True


def _renew(cache: Core, tags: dict[str, Tag]) -> Steps[None]:
    """Renew tags in this process at once, and in Redis."""
    if cache.server is None:
        yield from cache.store.renew_tags(tags)
        return
    for name, tag in tags.items():
        cache.memory.expect_generation(name, tag.generation)
    try:
        yield from cache.store.renew_tags(tags)
    except BaseException:  # of a task that was cancelled, too
        for name, tag in tags.items():
            cache.memory.stop_expecting(name, tag.generation)
        raise


def send_pending(cache: Core) -> Steps[None]:
    """Send invalidations that Redis did not take. Generations are new ones: the former may be in use.

    Raises:
        StoreDownError: it does not take them now either.
    """
    sent = cache.pending.snapshot()
    tags = {name: new_tag(token) for name, (_, token) in sent.items()}
    yield from _renew(cache, tags)
    cache.pending.remove(sent)
