"""What one engine's connections are used for: taken by whom, for how long, and what is wrong with that.

Kept outside of the pool because a pool is thrown away and made anew (``Engine.dispose()``) while its
connections are still out.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import current_thread
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from tenfold.callsites import CallSites
from tenfold.database.pools import holders
from tenfold.database.pools.budget import PING_AFTER_S
from tenfold.database.pools.findings import Findings
from tenfold.database.pools.holders import Holder, Owner, described
from tenfold.database.pools.pool_metrics import Figures
from tenfold.database.pools.request_context import NOBODY, Visit, current

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["TimeoutMode", "Watch", "Watching"]

TimeoutMode = Literal["session", "transaction", "off"]

ENDED = 100_000  # uses kept between two looks of the watcher; the oldest beyond are not in the histograms
ALERT_S = 60.0  # after a finding every checkout's stack is kept for so long
NEARLY = 0.9  # of the overflow


@dataclass(frozen=True, slots=True)
class Watching:
    """How a pool is watched; see :func:`tenfold.database.pools.pool.pool_options`."""

    name: str = "default"
    max_waiting: int | None = None
    ping_after_s: float = PING_AFTER_S
    statement_timeout: TimeoutMode = "session"
    leak_after_s: float | None = 60.0
    idle_in_transaction_s: float = 1.0
    stack_every: int = 20
    root: Path = field(default_factory=Path.cwd)
    metrics: bool = False
    registry: CollectorRegistry | None = None


class Watch:
    """The holders of one engine's connections. All methods up to ``failed`` are on every request's way."""

    def __init__(self, watching: Watching, *, size: int, most: float) -> None:
        self.watching = watching
        self.sites = CallSites(watching.root)
        self.findings = Findings(watching.name)
        self.dialect: Any = None  # the one whose statements are watched
        self.held: dict[Any, Holder] = {}  # by SQLAlchemy's connection record
        self.size, self.most = size, most
        self._alarm_at = max(size + NEARLY * (most - size), 2)  # a pool of one is meant to be full
        self._owners: dict[Owner, int] = {}  # how many each holds
        self._ended: deque[tuple[Visit | None, float, float]] = deque(maxlen=ENDED)
        self._timeouts = self._refused = 0
        self._to_sample = watching.stack_every
        self._alert_until = 0.0
        self._who = float("-inf"), ""
        self._looking = threading.Lock()
        self._figures = Figures(watching.name, watching.registry) if watching.metrics else None

    def taken(self, record: Any, started: float) -> Holder:
        """A connection was handed out, asked for at ``started``."""
        now = perf_counter()
        holder = self.held[record] = Holder(current(), now, now - started)
        self._to_sample -= 1
        if self._to_sample <= 0 or now < self._alert_until:
            self._to_sample = self.watching.stack_every
            holder.site = holders.here(self.sites)
        owner = holder.owner
        if owner in self._owners:
            self._owners[owner] += 1
            # A thread of anyio's works for one request after the other, and their connections overlap.
            if not (owner is holder.thread and current_thread().name.startswith("AnyIO")):
                self._found("two connections at once", holder, 0.0, lambda: holders.here(self.sites))
        else:
            self._owners[owner] = 1
        if len(self.held) >= self._alarm_at:
            self._found("nearly full", None, 0.0, self.who)
        return holder

    def given_back(self, record: Any) -> None:
        """A connection came back, or was never handed out."""
        holder = self.held.pop(record, None)
        if holder is None:
            return
        has = self._owners.pop(holder.owner, 1)
        if has > 1:
            self._owners[holder.owner] = has - 1
        self._ended.append((holder.visit, holder.waited_s, perf_counter() - holder.since))

    def resumed(self, holder: Holder, connection: Any) -> None:
        """A transaction goes on, or ends, after a pause: was it too long?"""
        paused_s = perf_counter() - holder.idle_since
        holder.idle_since = 0.0
        if paused_s >= self.watching.idle_in_transaction_s and not getattr(connection, "autocommit", False):
            self._found(
                "idle in a transaction",
                holder,
                paused_s,
                lambda: f"{holder.title} for {paused_s:.1f} s before {holders.here(self.sites)}",
            )

    def failed(self, *, refused: bool) -> None:
        """A checkout got nothing."""
        if refused:
            self._refused += 1
        else:
            self._timeouts += 1
        self._found("exhausted", None, 0.0, self.who)

    def who(self, *, recent_s: float = 0.0) -> str:
        """Who holds the connections, in one line; that line may be so old: refusing has to be cheap."""
        now = perf_counter()
        if now - self._who[0] >= recent_s:
            self._who = now, "held by " + described(list(self.held.values()), self.sites, now)
        return self._who[1]

    def look(self, *, idle: int, overflow: int, waiting: int) -> None:
        """What takes time: leaks are looked for, and the figures brought up to date. Called once a second."""
        with self._looking:
            now = perf_counter()
            held = list(self.held.values())
            for holder in held:
                self._held_too_long(holder, now)
            if len(self._owners) > len(held):  # threads of one request that met in taken() or given_back()
                self._owners = dict(Counter(holder.owner for holder in self.held.copy().values()))
            ended = [self._ended.popleft() for _ in range(len(self._ended))]
            timeouts, self._timeouts = self._timeouts, 0
            refused, self._refused = self._refused, 0
            if self._figures is None:
                return
            self._figures.sized(self.size, 0 if math.isinf(self.most) else int(self.most))
            self._figures.now(used=len(self.held), idle=idle, overflow=overflow, waiting=waiting)
            self._figures.failures(timeouts=timeouts, refused=refused)
            self._figures.uses((visit.route if visit else NOBODY, wait, use) for visit, wait, use in ended)

    def _held_too_long(self, holder: Holder, now: float) -> None:
        limit, age = self.watching.leak_after_s, now - holder.since
        if limit is None or age < limit or holder.reported:
            return
        holder.reported = True
        told = holder.told(self.sites, now)
        self._found("held too long", holder, age, lambda: f"{holder.title}, {told}")

    def _found(self, kind: str, holder: Holder | None, seconds: float, describe: Callable[[], str]) -> None:
        if self.findings.add(kind, holder.title if holder is not None else "", seconds, describe):
            self._alert_until = perf_counter() + ALERT_S
