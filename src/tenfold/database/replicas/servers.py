"""What the router knows of one server, and the pools that it keeps for it."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from weakref import WeakSet

from tenfold.breaker import Breaker
from tenfold.database.replicas.freshness import Place

__all__ = [
    "CHOICES",
    "Choice",
    "Cluster",
    "Health",
    "HealthLimits",
    "Lag",
    "Load",
    "Member",
    "PrimaryTrack",
    "may_serve",
    "order",
]


# Which of several replicas gets this read. Pure: what is known of each comes in, an order comes out.
Choice = Literal["least", "random", "round-robin"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

_TYPICAL_S = 0.001
_MEMORY_S = 0.5
_MOST_KEPT = 0.95
_IN_A_ROW_S = -_MEMORY_S * math.log(_MOST_KEPT)
_LEAST_S = 0.00002
_CHANCE = 1.5  # costs that differ by less than this differ by chance


@dataclass(slots=True)
class Load:
    """How busy one server is, as seen from this process: reads in flight and how long a statement takes.

    The time is a moving average. What nobody has asked for a while fades to nothing, so that a server that
    was slow is tried again: five seconds after, if it took ten thousand times as long as the others. Of two
    updates at the same moment one may be lost; it is an average.
    """

    in_flight: int = 0
    average_s: float = _TYPICAL_S
    _at: float = -math.inf

    def took(self, seconds: float, *, now: float) -> None:
        """A statement took so long."""
        # Of many in a row each counts for a twentieth; the first after a pause replaces what was remembered.
        pause = now - self._at
        kept = _MOST_KEPT if pause < _IN_A_ROW_S else math.exp(-pause / _MEMORY_S)
        self.average_s = kept * self.average_s + (1 - kept) * seconds
        self._at = now

    def cost(self, now: float) -> float:
        """What one read more would wait for, roughly."""
        faded = math.exp(min(0.0, self._at - now) / _MEMORY_S)
        return (self.in_flight + 1) * max(_LEAST_S, faded * self.average_s)


def order(
    loads: Sequence[Load],
    *,
    choice: Choice,
    turn: int,
    now: float,
    below: Callable[[int], int],
) -> list[int]:
    """The indices of ``loads``, the one to ask first at the front, the rest for when that one cannot.

    ``least`` is the power of two choices (Mitzenmacher, 2001): of two at random the cheaper one, if it is
    cheaper by more than chance. Asking *all* for the cheapest would send every process of a fleet to the same
    server at the same moment.

    Args:
        turn: grows with every call; what ``round-robin`` goes by.
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
    turned = ((first + step) % count for step in range(1, count))
    return [first, other, *(index for index in turned if index != other)]


# How far a replica is behind, and whether it may serve. Pure: samples come in, verdicts come out.
#
# Lag is what the *router* sees: which positions the primary had when, and which one the replica has now.
# ``now() - pg_last_xact_replay_timestamp()`` grows on a replica whose primary has nothing to write, and says
# nothing of bytes.
_SAMPLES = 600


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """When a replica no longer gets reads.

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
    """How far behind: bytes of log, and seconds since the primary had the first byte that is lacking."""

    bytes: int = 0
    seconds: float = 0.0


class PrimaryTrack:
    """Where the primary was when. Seconds are as exact as the samples are frequent."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self.timeline = 0

    def add(self, at: float, timeline: int, position: int) -> None:
        """The primary of ``timeline`` was there at ``at``; samples of a former timeline are forgotten."""
        if timeline != self.timeline:
            self._samples.clear()
            self.timeline = timeline
        if not self._samples or position > self._samples[-1][1]:  # what stood still has nothing to tell
            self._samples.append((at, position))

    def lag(self, timeline: int, replayed: int, *, now: float) -> Lag:
        """How far behind a replica is that has replayed so much of its ``timeline``.

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
        lacking = next(at for at, position in self._samples if position > replayed)
        return Lag(latest - replayed, max(0.0, now - lacking))


def may_serve(lag: Lag, limits: HealthLimits, *, serving: bool) -> bool:
    """Whether a replica with this lag gets reads. One that lost them comes back at half of each limit."""
    share = 1.0 if serving else 0.5
    return lag.bytes <= share * limits.max_lag_bytes and lag.seconds <= share * limits.max_lag_s


class Health:
    """Whether a server answers, and how far behind it is. Fed by reads that fail and by the sampler."""

    def __init__(self) -> None:
        self.breaker = Breaker(failures=2, ratio=2.0, cool_down_s=0.5)
        self.lag = Lag()
        self.in_time = True
        self.answers = True
        self.place: Place | None = None  # where it was last heard of: a hint, never a proof

    @property
    def serving(self) -> bool:
        """Whether reads should be sent there."""
        return self.in_time and self.answers and self.breaker.is_closed

    def failed(self) -> None:
        """A connection to it was lost, or could not be made."""
        if (ticket := self.breaker.admit()) is not None:
            self.breaker.record(ticket, False)

    def worked(self) -> None:
        """It answered."""
        if (ticket := self.breaker.admit()) is not None:
            self.breaker.record(ticket, True)

    def heard_nothing(self) -> None:
        """It answered, and cannot say where it is."""
        self.answers = True
        self.worked()

    def heard(self, place: Place, lag: Lag, limits: HealthLimits) -> None:
        """The sampler got an answer."""
        self.place, self.lag = place, lag
        self.in_time = may_serve(lag, limits, serving=self.in_time)
        self.heard_nothing()


@dataclass(slots=True)
class Cluster:
    """What is true of primary and replicas together.

    Attributes:
        positions: whether log positions can be had; a time stands in for them otherwise.
        replicated: whether there are replicas.
        sampled: whether all servers are asked where they are, again and again.
        setups: what is to be done to each engine before it is used.
        segment_bytes: the size of a WAL segment, chosen by ``initdb``.
    """

    positions: bool = True
    replicated: bool = False
    sampled: bool = False
    segment_bytes: int = 16 * 1024 * 1024
    setups: list[Callable[[Any], object]] = field(default_factory=list)
    track: PrimaryTrack = field(default_factory=PrimaryTrack)


class Member:
    """One server in one use: the primary for writes, a replica for reads, the same one for reports.

    Args:
        name: host, port and database, without a password.
        primary: whether it is the truth.
        health: shared by the uses of one server.
        make: an engine of this use, for asyncio when its argument is True; called once for each.
    """

    def __init__(
        self,
        name: str,
        *,
        primary: bool,
        cluster: Cluster,
        health: Health,
        make: Callable[[bool, Callable[[Any], None]], Any],
    ) -> None:
        self.name = name
        self.primary = primary
        self.cluster = cluster
        self.health = health
        self.load = Load()
        self.waits = True  # until it refuses to be told so
        self._make = make
        self._engines: dict[bool, Any] = {}
        self._connections: WeakSet[Any] = WeakSet()
        self._lock = threading.Lock()

    def engine(self, asynchronous: bool) -> Any:
        """The SQLAlchemy engine: in both cases the synchronous one, which an async engine has inside."""
        if (engine := self._engines.get(asynchronous)) is None:
            with self._lock:
                engine = self._engines.get(asynchronous) or self._made(asynchronous)
                self._engines[asynchronous] = engine
        return engine

    def _made(self, asynchronous: bool) -> Any:
        engine = self._make(asynchronous, self._opened)
        for setup in self.cluster.setups:
            setup(engine)
        return engine

    def engines(self) -> list[Any]:
        """Those that were used."""
        with self._lock:
            return list(self._engines.values())

    def forget_engines(self) -> list[Any]:
        """The engines so far; the next use makes new ones."""
        with self._lock:
            former, self._engines = list(self._engines.values()), {}
            self._connections = WeakSet()
            return former

    def _opened(self, connection: Any) -> None:
        with self._lock:
            self._connections.add(connection)

    def entered(self) -> None:
        """One use more at this moment."""
        with self._lock:
            self.load.in_flight += 1

    def left(self) -> None:
        """One use less."""
        with self._lock:
            self.load.in_flight -= 1

    def connections(self) -> list[Any]:
        """The driver's connections that are open."""
        with self._lock:
            return list(self._connections)
