"""What the router knows of one server, and the pools that it keeps for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from tenfold.breaker import Breaker
from tenfold.database.choice import Load
from tenfold.database.freshness import Place
from tenfold.database.health import HealthLimits, Lag, PrimaryTrack, may_serve

__all__ = ["Cluster", "Health", "Member"]


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
        return self.in_time and self.answers and self.breaker.closed

    def failed(self) -> None:
        """A connection to it was lost, or could not be made."""
        if (ticket := self.breaker.admit()) is not None:
            self.breaker.settle(ticket, False)

    def worked(self) -> None:
        """It answered."""
        if (ticket := self.breaker.admit()) is not None:
            self.breaker.settle(ticket, True)

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
