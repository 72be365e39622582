"""A trace of request rates through a scaler: late requests, replica-hours, and what set each number. Pure.

A service is instances that each take a measured rate within their objective. What comes beyond that waits in
a queue which is worked off at the capacity; requests are late while the wait is longer than the objective,
and given up at the client's timeout. CPU and rates per instance follow what is served, one step of 15 s late,
as a metrics pipeline reports them. What is simplified is listed in docs/autoscaling.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tenfold.autoscaling.hpa import Decision
from tenfold.autoscaling.traces import STEP_S

__all__ = ["Change", "Observation", "Outcome", "Policy", "Service", "simulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is known of one instance.

    Attributes:
        instance_rps: the rate that it takes within its objective, as measured.
        cpu: milli-cores that it uses at that rate.
        cpu_request: milli-cores that it requests.
        memory_percent: of its memory request that it uses, at any rate.
        objective_s: requests that wait longer are late.
        timeout_s: when clients give up.
        start_s: from the start of a pod until it is ready.
        node_start_s: so long a pod waits for a node, where every ``pods_per_node``-th needs a new one; 0 of
            these: there is always room.
        most_instances: with which the database's connections are used up; more do no work. 0: no limit.
    """

    instance_rps: float
    cpu: int = 1000
    cpu_request: int = 1000
    memory_percent: int = 50
    objective_s: float = 0.2
    timeout_s: float = 10.0
    start_s: float = 20.0
    node_start_s: float = 90.0
    pods_per_node: int = 0
    most_instances: int = 0


class Observation(NamedTuple):
    """What a scaler sees after a step.

    Attributes:
        ready: instances that do work.
        fresh: ready instances whose CPU does not count yet.
        starting: instances that run and are not ready; ``pending``: that wait for a node.
        rate: requests per second that came; ``served``: that were worked off.
    """

    now: float
    current: int
    ready: int
    fresh: int
    starting: int
    pending: int
    rate: float
    served: float


class Policy(Protocol):
    """Decides after each step."""

    def __call__(self, seen: Observation, /) -> tuple[int, Decision | None]:
        """The number from now on, and why."""


class Change(NamedTuple):
    """A change of the number of instances."""

    at: float
    before: int
    after: int
    rate: float
    decision: Decision | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a policy made of a trace.

    Attributes:
        late_share: of all requests, those late or given up.
        replica_hours: of instances from their start.
        recovery_s: the longest time without a step in which all requests are in time.
        capped_s: how long the database's connections held instances back.
        replicas: after each step.
        lates: share of each step's requests.
    """

    name: str
    late_share: float
    replica_hours: float
    recovery_s: float
    capped_s: float
    changes: list[Change] = field(repr=False)
    replicas: list[int] = field(repr=False)
    lates: list[float] = field(repr=False)


WINDOW_S = 30.0
"""Of the metrics pipeline: an instance's CPU counts when it has been ready for so long."""


def simulate(name: str, rates: Sequence[float], service: Service, policy: Policy, *, start: int) -> Outcome:
    """Send a trace through a policy, from ``start`` instances that are ready."""
    fleet, queue = _Fleet(start, service), 0.0
    instance_steps, late_requests, capped_s = 0, 0.0, 0.0
    changes: list[Change] = []
    replicas: list[int] = []
    lates: list[float] = []
    rate_before = rates[0] if rates else 0.0  # as if it had gone on for long
    served_before = min(rate_before, start * service.instance_rps)
    for step, rate in enumerate(rates):
        now = step * STEP_S
        fleet.advance(now)
        working = fleet.ready
        if 0 < service.most_instances < working:
            working, capped_s = service.most_instances, capped_s + STEP_S
        queue, late, served = _work(queue, rate, working * service.instance_rps, service)
        late_requests += late * rate
        current = fleet.ready + fleet.starting + fleet.pending
        instance_steps += current
        seen = Observation(
            now, current, fleet.ready, fleet.fresh, fleet.starting, fleet.pending, rate_before, served_before
        )
        desired, decision = policy(seen)
        if desired != current:
            fleet.change(desired, now)
            changes.append(Change(now, current, desired, rate, decision))
        rate_before, served_before = rate, served
        replicas.append(desired)
        lates.append(late)
    return Outcome(
        name=name,
        late_share=late_requests / (sum(rates) or 1.0),
        replica_hours=instance_steps * STEP_S / 3600,
        recovery_s=_longest_run(lates) * STEP_S,
        capped_s=capped_s,
        changes=changes,
        replicas=replicas,
        lates=lates,
    )


class _Fleet:
    """Instances: ready, starting, waiting for a node."""

    def __init__(self, ready: int, service: Service) -> None:
        self.ready, self.fresh, self.starting, self.pending = ready, 0, 0, 0
        self._service = service
        self._started: list[tuple[float, float, int]] = []  # runs at, is ready at, count; the youngest last
        self._fresh: list[tuple[float, int]] = []

    def advance(self, now: float) -> None:
        """Let time pass."""
        if self._started:
            self.ready += sum(count for _, ready_at, count in self._started if ready_at <= now)
            self._fresh += [(at + WINDOW_S, count) for _, at, count in self._started if at <= now]
            self._started = [one for one in self._started if one[1] > now]
            self.starting = sum(count for runs_at, _, count in self._started if runs_at <= now)
            self.pending = sum(count for runs_at, _, count in self._started if runs_at > now)
        if self._fresh:
            self._fresh = [one for one in self._fresh if one[0] > now]
            self.fresh = min(sum(count for _, count in self._fresh), self.ready)

    def change(self, desired: int, now: float) -> None:
        """Start instances, or end some: those that are not ready first, the youngest of them first."""
        current = self.ready + self.starting + self.pending
        if desired > current:
            runs_at = now + self._wait(current, desired)
            self._started.append((runs_at, runs_at + self._service.start_s, desired - current))
            return
        ended = current - desired
        while ended and self._started:
            runs_at, ready_at, count = self._started.pop()
            if count > ended:
                self._started.append((runs_at, ready_at, count - ended))
            ended -= min(count, ended)
        self.ready -= ended
        if not self._started:
            self.starting = self.pending = 0

    def _wait(self, current: int, desired: int) -> float:
        """How long new instances wait for a node; the first of them is taken to wait as long as the last."""
        each = self._service.pods_per_node
        needs_one = each and math.ceil(desired / each) > math.ceil(current / each)
        return self._service.node_start_s if needs_one else 0.0


def _work(queue: float, rate: float, capacity: float, service: Service) -> tuple[float, float, float]:
    """One step of the queue: what waits afterwards, the share that is late, the rate that was served.

    The queue changes evenly within a step, so that the time above a length is known exactly.
    """
    if queue == 0.0 and rate <= capacity:
        return 0.0, 0.0, rate
    if capacity <= 0.0:
        return min(queue + rate * STEP_S, rate * service.timeout_s), float(rate > 0), 0.0
    longest, slow = capacity * service.timeout_s, capacity * service.objective_s
    change = rate - capacity
    after = min(max(queue + change * STEP_S, 0.0), longest)
    if change == 0.0:
        late = float(queue > slow)
    else:
        crosses = min(max((slow - queue) / change, 0.0), STEP_S)
        late = (STEP_S - crosses if change > 0 else crosses) / STEP_S
    served = min((queue - after) / STEP_S + rate, capacity)
    return after, late, max(served, 0.0)


def _longest_run(lates: Sequence[float]) -> int:
    """The longest run of steps with late requests."""
    longest = run = 0
    for late in lates:
        run = run + 1 if late else 0
        longest = max(longest, run)
    return longest
