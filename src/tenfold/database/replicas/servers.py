"""The router's view of its servers: lag, health, load, the engines of each, and the choice among replicas."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from weakref import WeakSet

from tenfold.breaker import Breaker
from tenfold.database.drivers import abandon_connections, sqlstate
from tenfold.database.replicas.freshness import ReplayPosition
from tenfold.positions import SEGMENT_BYTES

__all__ = [
    "CHOICES",
    "Choice",
    "Cluster",
    "DatabaseServer",
    "HealthLimits",
    "Lag",
    "PrimaryHistory",
    "ServerHealth",
    "ServerLoad",
    "may_serve",
    "read_order",
]

_log = logging.getLogger("tenfold.database")

# ------------------------------------------------------------------ lag and health

# Lag is what the *router* sees: the positions that the primary had over time, and the one that a replica has
# now. ``now() - pg_last_xact_replay_timestamp()`` grows on a replica whose primary has nothing to write, and
# says nothing of bytes.
_MAX_SAMPLES = 600


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """Limits beyond which a replica gets no reads.

    Attributes:
        max_lag_bytes: log that it has yet to replay.
        max_lag_s: how long ago the primary had what it still lacks. A token must live longer than this.
        sample_s: seconds between two samples of every server; 0 takes none, and lag is not known then.
        hang_s: a replica that leaves the router without an answer for so long is taken for hung: its
            connections are cut, so that reads waiting on it fail and go elsewhere.
    """

    max_lag_bytes: int = 64 * 1024 * 1024
    max_lag_s: float = 10.0
    sample_s: float = 0.5
    hang_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Lag:
    """Bytes of log that a replica lacks, and seconds since the primary had the first of them."""

    bytes: int = 0
    seconds: float = 0.0


class PrimaryHistory:
    """The primary's positions over time. Seconds are as exact as the samples are frequent."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_MAX_SAMPLES)
        self.timeline = 0

    def add(self, at: float, timeline: int, position: int) -> None:
        """Add a sample; those of a former timeline are forgotten."""
        if timeline != self.timeline:
            self._samples.clear()
            self.timeline = timeline
        if not self._samples or position > self._samples[-1][1]:  # an unchanged position adds nothing
            self._samples.append((at, position))

    def lag(self, timeline: int, replayed: int, *, now: float) -> Lag:
        """The lag of a replica that has replayed so much of its ``timeline``.

        One that has not followed a promotion lacks all that was written since; so it is late by that time,
        whatever its position says. A later timeline than the primary's has nothing to be measured by.
        """
        if not self._samples or timeline > self.timeline:
            return Lag()
        latest = self._samples[-1][1]
        if timeline < self.timeline:
            return Lag(max(0, latest - replayed), now - self._samples[0][0])
        if replayed >= latest:
            return Lag()
        first_missing_at = next(at for at, position in self._samples if position > replayed)
        return Lag(latest - replayed, max(0.0, now - first_missing_at))


def may_serve(lag: Lag, limits: HealthLimits, *, serving: bool) -> bool:
    """Return whether a replica with this lag gets reads. One that lost them returns at half of each limit."""
    share = 1.0 if serving else 0.5
    return lag.bytes <= share * limits.max_lag_bytes and lag.seconds <= share * limits.max_lag_s


class ServerHealth:
    """The health of a server: whether it answers, and its lag. Fed by failed reads and by the sampler."""

    def __init__(self) -> None:
        self.breaker = Breaker(failures=2, ratio=2.0, cool_down_s=0.5)
        self.lag = Lag()
        self.within_limits = True
        self.answers = True
        self.last_position: ReplayPosition | None = None  # of the last sample: a hint, never a proof

    @property
    def is_serving(self) -> bool:
        """True if reads should be sent there."""
        return self.within_limits and self.answers and self.breaker.is_closed

    def record_failure(self) -> None:
        """Record that a connection was lost, or could not be made."""
        if (ticket := self.breaker.admit()) is not None:
            self.breaker.record(ticket, False)

    def record_success(self) -> None:
        """Record that a statement was answered."""
        if (ticket := self.breaker.admit()) is not None:
            self.breaker.record(ticket, True)

    def record_answer(self) -> None:
        """Record an answer to the sampler that has no position in it."""
        self.answers = True
        self.record_success()

    def record_sample(self, position: ReplayPosition, lag: Lag, limits: HealthLimits) -> None:
        """Record a position and the lag that follows from it."""
        self.last_position, self.lag = position, lag
        self.within_limits = may_serve(lag, limits, serving=self.within_limits)
        self.record_answer()


# ------------------------------------------------------------------ servers


@dataclass(slots=True)
class Cluster:
    """Facts about primary and replicas together.

    Attributes:
        has_positions: whether log positions can be had; a time stands in for them otherwise.
        has_replicas: whether there are replicas.
        is_sampled: whether all servers are asked for their positions at intervals.
        segment_bytes: the size of a WAL segment, chosen by ``initdb``.
        engine_setups: functions that are called with each engine before it is used.
        primary_history: the primary's positions over time.
    """

    has_positions: bool = True
    has_replicas: bool = False
    is_sampled: bool = False
    segment_bytes: int = SEGMENT_BYTES
    engine_setups: list[Callable[[Any], object]] = field(default_factory=list)
    primary_history: PrimaryHistory = field(default_factory=PrimaryHistory)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def give_up_positions(self, name: str, error: BaseException) -> None:
        """Go on without log positions after a server refused to tell its own; logged once."""
        with self._lock:
            had_positions, self.has_positions = self.has_positions, False
        if had_positions:
            _log.warning(
                "%s does not tell its log position (%s %s): a time after each write stands in for it",
                name,
                type(error).__name__,
                sqlstate(error) or "in its answer",
            )


class DatabaseServer:
    """One server in one use: the primary for writes, a replica for reads, the same one for reports.

    Args:
        name: host, port and database, without a password.
        is_primary: whether it is the primary.
        cluster: shared by all servers of a router.
        health: shared by the uses of one server.
        make_engine: makes an engine of this use, for asyncio when its first argument is True; called once for
            each. Its second argument is to be called with each connection that the engine opens.
    """

    def __init__(
        self,
        name: str,
        *,
        is_primary: bool,
        cluster: Cluster,
        health: ServerHealth,
        make_engine: Callable[[bool, Callable[[Any], None]], Any],
    ) -> None:
        self.name = name
        self.is_primary = is_primary
        self.cluster = cluster
        self.health = health
        self.load = ServerLoad()
        self.supports_wait = True  # until it refuses WAIT FOR LSN
        self._make_engine = make_engine
        self._engines: dict[asyncio.AbstractEventLoop | None, Any] = {}  # None: for threads
        self._connections: WeakSet[Any] = WeakSet()
        self._lock = threading.Lock()
        self._abandoned: deque[None] = deque()

    def engine(self, asynchronous: bool) -> Any:
        """The SQLAlchemy engine: in both cases the synchronous one, which an async engine has inside.

        Each event loop has an engine of its own: connections and queues of asyncio belong to one.
        """
        loop = asyncio.get_running_loop() if asynchronous else None
        if (engine := self._engines.get(loop)) is None:
            with self._lock:
                if (engine := self._engines.get(loop)) is None:
                    self._forget_closed_loops()
                    engine = self._engines[loop] = self._set_up_engine(asynchronous)
        return engine

    def _forget_closed_loops(self) -> None:
        for loop in [loop for loop in self._engines if loop is not None and loop.is_closed()]:
            abandon_connections(self._engines.pop(loop))

    def _set_up_engine(self, asynchronous: bool) -> Any:
        engine = self._make_engine(asynchronous, self._add_connection)
        if not self.is_primary:
            from sqlalchemy import event

            event.listen(engine, "do_connect", self._refuse_to_connect)
        for setup in self.cluster.engine_setups:
            setup(engine)
        return engine

    def _refuse_to_connect(self, *_: Any) -> None:
        """Fail at once for reads that queued for a connection while the server hung: they go elsewhere."""
        if not self.health.answers:
            raise ConnectionError(f"{self.name} does not answer")

    def discard_engines(self) -> dict[asyncio.AbstractEventLoop | None, Any]:
        """Return the engines so far by their event loops and forget them; the next use makes new ones."""
        with self._lock:
            former, self._engines = self._engines, {}
            self._connections = WeakSet()
            return former

    def _add_connection(self, connection: Any) -> None:
        with self._lock:
            self._connections.add(connection)

    def open_connections(self) -> list[Any]:
        """The driver's connections that are open."""
        with self._lock:
            return list(self._connections)

    def increment_in_flight(self) -> None:
        """Count a checkout."""
        with self._lock:
            self.load.in_flight += 1 - self._subtract_abandoned()

    def decrement_in_flight(self) -> None:
        """Count a return."""
        with self._lock:
            self.load.in_flight -= 1 + self._subtract_abandoned()

    def count_abandoned(self) -> None:
        """Count the end of a checkout that the garbage collector found: at any moment, so never wait here."""
        self._abandoned.append(None)
        if self._lock.acquire(
            blocking=False
        ):  # otherwise this very thread may hold it: the next checkout subtracts it
            try:
                self.load.in_flight -= self._subtract_abandoned()
            finally:
                self._lock.release()

    def _subtract_abandoned(self) -> int:
        count = len(self._abandoned)
        for _ in range(count):
            self._abandoned.pop()
        return count


# ------------------------------------------------------------------ choice among replicas

Choice = Literal["least", "random", "round-robin"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

_TYPICAL_S = 0.001
_MEMORY_S = 0.5
_MAX_KEPT = 0.95
_IN_A_ROW_S = -_MEMORY_S * math.log(_MAX_KEPT)
_MIN_S = 0.00002
_CHANCE = 1.5  # costs that differ by less than this differ by chance


@dataclass(slots=True)
class ServerLoad:
    """The load of one server as seen from this process: checkouts in flight and the time of a statement.

    The time is a moving average. It fades to nothing while no statement runs there, so that a server that was
    slow is tried again: five seconds after, if it took ten thousand times as long as the others. Of two
    updates at the same moment one may be lost; it is an average.
    """

    in_flight: int = 0
    average_s: float = _TYPICAL_S
    _at: float = -math.inf

    def record_duration(self, seconds: float, *, now: float) -> None:
        """Add the duration of a statement to the average."""
        # Of many in a row each counts for a twentieth; the first after a pause replaces the average.
        pause = now - self._at
        kept = _MAX_KEPT if pause < _IN_A_ROW_S else math.exp(-pause / _MEMORY_S)
        self.average_s = kept * self.average_s + (1 - kept) * seconds
        self._at = now

    def cost(self, now: float) -> float:
        """The time that one more read would take here, roughly."""
        faded = math.exp(min(0.0, self._at - now) / _MEMORY_S)
        return (self.in_flight + 1) * max(_MIN_S, faded * self.average_s)


def read_order(
    loads: Sequence[ServerLoad],
    *,
    choice: Choice,
    turn: int,
    now: float,
    below: Callable[[int], int],
) -> list[int]:
    """The indices of ``loads``, the server to ask first at the front, the rest for when it cannot serve.

    ``least`` is the power of two choices (Mitzenmacher, 2001): of two at random the cheaper one, if it is
    cheaper by more than chance. Asking *all* for the cheapest would send every process of a fleet to the same
    server at the same moment.

    Args:
        turn: grows with every call; the state of ``round-robin``.
        below: a random whole number from 0 up to its argument, exclusively.
    """
    count = len(loads)
    if count < 2:
        return list(range(count))
    first = turn % count if choice == "round-robin" else below(count)
    if choice != "least":
        return [(first + step) % count for step in range(count)]
    other = 1 - first if count == 2 else (first + 1 + below(count - 1)) % count
    if loads[other].cost(now) * _CHANCE < loads[first].cost(now):
        first, other = other, first
    if count == 2:
        return [first, other]
    rotated = ((first + step) % count for step in range(1, count))
    return [first, other, *(index for index in rotated if index != other)]
