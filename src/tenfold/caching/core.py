"""The parts of one cache, as lookups and their drivers use them."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tenfold.caching.counts import Counts
from tenfold.caching.entry import Entry, Tag
from tenfold.caching.fence import Fence
from tenfold.caching.flights import Flights
from tenfold.caching.function import CachedFunction
from tenfold.caching.memory import MemoryTier, Slot
from tenfold.caching.stores import Store
from tenfold.caching.values import UnstorableError
from tenfold.positions import Token, merge_tokens

__all__ = ["Call", "Core"]

MAX_UNTOLD = 10_000
_MAX_REFRESHES = 100
_log = logging.getLogger("tenfold.caching")


@dataclass(slots=True)
class Call:
    """One call of a cached function.

    Attributes:
        key: of the entry.
        tags: whose names are known before the load.
        token: what the reader has seen.
        load: calls the function with this call's arguments.
        session: the SQLAlchemy session among them, if any.
        tables: that former loads have read, where tags are derived.
        allowed_reads: personal values that ``vary`` has made a part of the key.
    """

    function: CachedFunction
    key: str
    tags: tuple[str, ...]
    token: Token | None
    load: Callable[[], Any]
    session: Any = None
    tables: tuple[str, ...] = ()
    allowed_reads: frozenset[str] = frozenset()

    def names(self) -> tuple[str, ...]:
        """All tags to be read."""
        return (*self.tags, *self.tables)


class UntoldTags:
    """Tags whose invalidation Redis did not take, with positions of their commits. Thread-safe.

    Beyond ``MAX_UNTOLD`` of them, the tags of all functions stand in for them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, Token | None] = {}
        self.functions: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def add(self, tags: Mapping[str, Tag]) -> None:
        """Add tags that have to be told."""
        with self._lock:
            for name, tag in tags.items():
                self._tokens[name] = merge_tokens(self._tokens.get(name), tag.token)
            if len(self._tokens) > MAX_UNTOLD:
                self._tokens = {f"@function:{name}": None for name in self.functions}

    def pop(self) -> dict[str, Token | None]:
        """Remove all of them, and return them."""
        with self._lock:
            tokens, self._tokens = self._tokens, {}
            return tokens


@dataclass(slots=True)
class Core:
    """What a cache is made of.

    Attributes:
        server: a RedisServer; None for a cache in this process alone.
        wait_s: longest wait for another caller's load.
        refresh_with: begins a load in the background.
    """

    store: Store
    memory: MemoryTier
    counts: Counts
    server: Any = None
    fence: Fence | None = None
    is_durable: bool = False
    debug: bool = False
    shadow: float = 0.0
    wait_s: float = 10.0
    refresh_with: Callable[[Call], None] = lambda _: None
    untold: UntoldTags = field(default_factory=UntoldTags)
    flights: Flights = field(default_factory=Flights)
    _refreshing: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reader_token(self) -> Token | None:
        """What the reader of this context has seen."""
        return self.fence.token() if self.fence is not None else None

    def count(self, function: CachedFunction, outcome: str) -> None:
        """Count a lookup by its outcome."""
        self.counts.add(function.name, outcome)

    def note_unstored(self, function: CachedFunction, obstacle: str) -> None:
        """Count a value that is not stored, and say why, once for each function."""
        self.counts.add(function.name, "unstored")
        if self.counts.is_first_refusal(function.name):
            _log.warning("what %s returned was not cached: %s", function.name, obstacle)

    # ------------------------------------------------------------------ hits

    def decode(self, function: CachedFunction, entry: Entry, outcome: str) -> Any:
        """Decode an entry for its reader, who has then seen its state.

        Raises:
            UnstorableError: it does not decode.
        """
        try:
            value = function.codec.decode(entry.value)
        except UnstorableError:
            self.count(function, "undecodable")
            raise
        self.count(function, outcome)
        self._record_hit(entry)
        return value

    def serve(self, function: CachedFunction, slot: Slot) -> Any:
        """The value of an entry of the memory tier; of a frozen function the same object each time."""
        if not function.is_frozen:
            return self.decode(function, slot.entry, "memory")
        if slot.value is None:
            slot.value = (function.codec.decode(slot.entry.value),)
        self.count(function, "memory")
        self._record_hit(slot.entry)
        return slot.value[0]

    def _record_hit(self, entry: Entry) -> None:
        if self.fence is not None and entry.token and entry.follows and (token := entry.position):
            self.fence.record_hit(token)

    # ------------------------------------------------------------------ loads beside a hit

    def refresh(self, call: Call) -> None:
        """Load a value again in the background, once at a time."""
        with self._lock:
            if call.key in self._refreshing or len(self._refreshing) >= _MAX_REFRESHES:
                return
            self._refreshing.add(call.key)
        self.count(call.function, "refreshed")
        self.refresh_with(call)

    def end_refresh(self, call: Call) -> None:
        """Let the next hit refresh this key again."""
        with self._lock:
            self._refreshing.discard(call.key)

    def draws_shadow(self) -> bool:
        """Return whether this hit is one of those that are compared with a load."""
        return random.random() < self.shadow  # noqa: S311

    def compare(self, call: Call, hit: Any, loaded: Any) -> None:
        """Count a hit as stale or not. What is written between the two counts as stale, too."""
        self.count(call.function, "agreed" if call.function.codec.is_same(hit, loaded) else "stale")

    def reset(self) -> None:
        """Forget what another process had under way, in a fork of it."""
        self.flights = Flights()
        self._lock, self._refreshing = threading.Lock(), set()
