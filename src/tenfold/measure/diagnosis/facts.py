"""Two windows of a measurement, compared: low load, and the limit. Pure.

The time of a request is divided into disjoint parts, in seconds per request:

- ``front``: in queues outside the app, before a worker takes the request: latency at the generator less the
  time in the app;
- ``pool``, ``db``, ``http``: waiting for a connection, in statements, in calls to other services; exact;
- ``run``: wanted the CPU; ``loop``: ready, and the event loop was busy; ``thread``: no worker thread was
  free; ``lock``, ``sleep``, ``io``, ``send``, ``other``; sampled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeVar

from tenfold.measure.machine.resources import Resources
from tenfold.measure.postgresql.explain import Plan
from tenfold.measure.postgresql.sessions import DatabaseStats
from tenfold.measure.probe.evidence import ClockStats, Evidence, PoolStats, SampleStats, StatementStats

PARTS = ("front", "pool", "db", "http", "run", "loop", "thread", "lock", "sleep", "io", "send", "other")
QUEUES = frozenset({"pool", "thread", "loop"})
EXACT = frozenset({"front", "pool", "db", "http"})


Key = TypeVar("Key", bound=Hashable)


class Sums(defaultdict[Key, float]):
    """Sums by key."""

    def __init__(self) -> None:
        super().__init__(float)

    def ranked(self) -> list[tuple[Key, float]]:
        """Return keys and sums, the largest first."""
        return sorted(self.items(), key=lambda item: -item[1])

    def largest(self, otherwise: Key) -> Key:
        """Return the key of the largest sum; ``otherwise`` when there is none."""
        return max(self, key=lambda key: self[key], default=otherwise)

    @property
    def total(self) -> float:
        """The sum of all; never 0, to divide by."""
        return sum(self.values()) or 1e-9


class SampleKey(NamedTuple):
    """What samples are summed by."""

    route: str
    line: str
    detail: str
    place: str  # where it was seen, or in which state


@dataclass(frozen=True)
class Window:
    """Some trials: what was seen inside and outside of the service."""

    evidence: Evidence
    resources: Resources | None = None
    database: DatabaseStats = field(default_factory=DatabaseStats)
    client_s: float = 0.0  # mean latency at the generator; 0: not known
    trials: tuple[Evidence, ...] = ()  # each alone: a mean over all hides the one at the limit

    @cached_property
    def requests(self) -> int:
        """Number of finished requests, at least 1."""
        return max(self.evidence.requests, 1)

    @cached_property
    def parts(self) -> dict[str, float]:
        """Seconds of a request by part."""
        evidence = self.evidence
        inside = sum(route.total_s for route in evidence.routes) / self.requests
        parts = dict.fromkeys(PARTS, 0.0)
        parts["front"] = max(self.client_s - inside, 0.0) if self.client_s else 0.0
        parts["pool"] = sum(route.wait_s for route in evidence.routes) / self.requests
        parts["db"] = sum(one.total_s for one in self.statements) / self.requests
        parts["http"] = sum(one.total_s for one in self.calls) / self.requests
        for sample in evidence.samples:
            if sample.state in parts and sample.state not in EXACT and sample.route:
                parts[sample.state] += sample.seconds / self.requests
        parts["pool"] = max(parts["pool"], self.states()["pool"] / self.requests)  # of pools without hooks
        return parts

    @cached_property
    def holders(self) -> list[SampleStats]:
        """Samples of requests that hold a connection; where no pool has hooks, of all that wait for none."""
        held = [one for one in self.evidence.samples if one.holds]
        if held or self.evidence.pools:
            return held
        return [one for one in self.evidence.samples if one.route and one.state not in QUEUES]

    @cached_property
    def statements(self) -> list[StatementStats]:
        """Statements of requests, the costliest first."""
        return [one for one in self.evidence.statements if one.route]

    @cached_property
    def calls(self) -> list[StatementStats]:
        """Calls of requests to other services, the costliest first."""
        return [one for one in self.evidence.calls if one.route]

    @cached_property
    def loop_clock(self) -> ClockStats | None:
        """The event loops' time in the trial in which they were busiest."""
        clocks = [one.loop_clock for one in self.trials or (self.evidence,) if one.loop_clock is not None]
        return max(clocks, key=lambda one: one.busy_share, default=None)

    @cached_property
    def pools(self) -> list[PoolStats]:
        """The connection pools, each as in the trial in which it was fullest, the fullest first."""
        fullest: dict[tuple[str, int, int], PoolStats] = {}
        for evidence in self.trials or (self.evidence,):
            for pool in evidence.pools:
                key = (pool.site, pool.size, pool.max_overflow)
                if key not in fullest or pool.full_share > fullest[key].full_share:
                    fullest[key] = pool
        return sorted(fullest.values(), key=lambda one: -one.full_share)

    @cached_property
    def app_cores(self) -> float:
        """Mean cores used by a worker of the app, in the trial with the most."""
        return self.cores_of("app") / max(self.evidence.workers, 1)

    def cores_of(self, group: str) -> float:
        """Return the mean cores of a group of processes, in the trial with the most."""
        return self.resources.busiest[0].get(group, 0.0) if self.resources is not None else 0.0

    @cached_property
    def machine_cpu(self) -> float:
        """Share of the machine's cores in use, in the trial with the most."""
        machine = self.resources.busiest[1] if self.resources is not None else None
        return machine.cpu if machine is not None else 0.0

    @property
    def cores(self) -> float:
        """Cores of the machine."""
        return self.resources.cores if self.resources is not None else 1.0

    @property
    def allowed_cores(self) -> float:
        """Cores that affinity and quota leave."""
        allowed = self.resources.allowed if self.resources is not None else 0.0
        return allowed or self.cores

    @property
    def throttled(self) -> float:
        """Share of the time in which a quota kept the stack waiting for the CPU."""
        machine = self.resources.busiest[1] if self.resources is not None else None
        return machine.throttled if machine is not None else 0.0

    @cached_property
    def other_cores(self) -> float:
        """Cores that programs outside of the stack use, the generator included."""
        if self.resources is None:
            return 0.0
        return max(self.machine_cpu * self.cores - sum(self.resources.busiest[0].values()), 0.0)

    def endpoint(self, route: str) -> str | None:
        """Return where a route's endpoint is defined."""
        return next((one.endpoint for one in self.evidence.routes if one.route == route), None) or None

    def response_bytes(self, route: str) -> float:
        """Return the mean size of a route's responses; 0 where it is not known."""
        sizes = [one.bytes / max(one.requests, 1) for one in self.evidence.routes if one.route == route]
        return sizes[0] if sizes else 0.0

    def states(self, **wanted: object) -> Sums[str]:
        """Return the sampled seconds by state, of the samples with these fields."""
        found: Sums[str] = Sums()
        for one in self.evidence.samples:
            if _has(one, wanted):
                found[one.state] += one.seconds
        return found


@dataclass(frozen=True)
class Facts:
    """What a diagnosis starts from.

    ``low`` is None when no trial ran at half of the capacity or less. ``slow_ms`` is the objective's.
    ``sources`` are lines of the user's code by place, as far as they could be read.
    """

    limit: Window
    low: Window | None = None
    plans: Mapping[str, Plan] = field(default_factory=dict)
    slow_ms: float = 200.0
    generator_cores: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def growth(self) -> dict[str, float]:
        """By how many seconds each part of a request grew from low load to the limit, the most first."""
        low = self.low.parts if self.low is not None else dict.fromkeys(PARTS, 0.0)
        grown = {part: self.limit.parts[part] - low[part] for part in PARTS}
        return dict(sorted(grown.items(), key=lambda item: -item[1]))


def _has(sample: SampleStats, wanted: Mapping[str, object]) -> bool:
    return all(getattr(sample, name) == value for name, value in wanted.items())
