"""The parts of one cache, as lookups and their drivers use them."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenfold.caching.counts import Counts
from tenfold.caching.entry import Entry, Tag, encodable
from tenfold.caching.fence import Fence
from tenfold.caching.flights import Flights
from tenfold.caching.function import CachedFunction
from tenfold.caching.memory import MemoryTier, Slot
from tenfold.caching.stores import Store
from tenfold.caching.values import UnstorableError
from tenfold.positions import Token, merge_tokens

__all__ = ["Call", "Core", "PendingInvalidations"]

MAX_PENDING = 10_000
_MAX_REFRESHES = 100
_log = logging.getLogger("tenfold.caching")


class Call:
    """One call of a cached function. What only a load needs is made when it is asked for.

    Args:
        key: of the entry.
        args, kwargs: of the call.
        values: of all parameters, in their order.
        loader: is called in place of the function.
        tags: besides the function's.

    Attributes:
        token: what the reader has seen.
        varied: the key text of what ``vary`` returned.
        allowed_reads: personal values that ``vary`` has made a part of the key.
        tables: that former loads have read, where tags are derived.
    """

    __slots__ = (
        "_args",
        "_kwargs",
        "_loader",
        "_tags",
        "_values",
        "allowed_reads",
        "function",
        "key",
        "tables",
        "token",
        "varied",
    )

    def __init__(
        self,
        function: CachedFunction,
        key: str,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        values: Sequence[Any] = (),
        *,
        loader: Callable[[], Any] | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        self.function, self.key = function, key
        self._args, self._kwargs, self._values = args, kwargs or {}, values
        self._loader, self._tags = loader, tags
        self.token: Token | None = None
        self.varied: str | None = None
        self.allowed_reads: frozenset[str] = frozenset()
        self.tables: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """The tags: of the function, of the variant, declared ones, and the tables of former loads."""
        own = [f"@function:{self.function.name}", *self._tags]
        if self.varied is not None:
            own.append(encodable(f"@vary:{self.varied}"))
        if self._loader is None:
            own += self.function.tags(self._values)
        return (*own, *self.tables)

    @property
    def session(self) -> Any:
        """The SQLAlchemy session among the arguments; None without one."""
        return self.function.find_session(self._values) if self._values else None

    def load(self) -> Any:
        """Call the function."""
        if self._loader is not None:
            return self._loader()
        return self.function.function(*self._args, **self._kwargs)

    def for_anyone(self, session: Any = None) -> Call:
        """The same call for no reader in particular, with another session if one is given."""
        former = self.session

        def swap(value: Any) -> Any:
            return session if session is not None and value is former else value

        kwargs = {name: swap(value) for name, value in self._kwargs.items()}
        call = Call(
            self.function,
            self.key,
            tuple(map(swap, self._args)),
            kwargs,
            [swap(value) for value in self._values],
            loader=self._loader,
            tags=self._tags,
        )
        call.varied, call.allowed_reads = self.varied, self.allowed_reads
        return call


class PendingInvalidations:
    """Tags whose invalidation Redis did not take, with positions of their commits. Thread-safe.

    Beyond ``MAX_PENDING`` of them, the tags of all functions stand in for them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serial = 0
        self._waiting: dict[str, tuple[int, Token | None]] = {}
        self.functions: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, tags: Mapping[str, Tag]) -> None:
        """Add tags that have to be sent again."""
        with self._lock:
            self._serial += 1
            for name, tag in tags.items():
                _, token = self._waiting.get(name, (0, None))
                self._waiting[name] = self._serial, merge_tokens(token, tag.token)
            if len(self._waiting) > MAX_PENDING:
                self._waiting = {f"@function:{name}": (self._serial, None) for name in self.functions}

    def snapshot(self) -> dict[str, tuple[int, Token | None]]:
        """All of them: a serial number and a position by name."""
        with self._lock:
            return dict(self._waiting)

    def remove(self, sent: Mapping[str, tuple[int, Token | None]]) -> None:
        """Remove those of a snapshot, but for what was added again since."""
        with self._lock:
            for name, (serial, _) in sent.items():
                if self._waiting.get(name, (0, None))[0] == serial:
                    del self._waiting[name]


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
    pending: PendingInvalidations = field(default_factory=PendingInvalidations)
    flights: Flights = field(default_factory=Flights)
    _refreshing: set[str] = field(default_factory=set)
    _warned: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, function: CachedFunction, outcome: str) -> None:
        """Count a lookup by its outcome."""
        self.counts.add(function.name, outcome)

    def note_unstored(self, function: CachedFunction, obstacle: str) -> None:
        """Count a value that is not stored, and say why."""
        self.count(function, "unstored")
        self.warn_once(function, f"what {function.name} returned was not cached: {obstacle}")

    def warn_once(self, function: CachedFunction, text: str) -> None:
        """Log a warning, one for each function."""
        with self._lock:
            is_first = function.name not in self._warned
            self._warned.add(function.name)
        if is_first:
            _log.warning("%s", text)

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
