"""What decides in a simulation: scalers, AWS target tracking, a schedule, a fixed number, an oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from tenfold.autoscaling.hpa import DOWN, UP, Behavior, Decision, State, reconcile
from tenfold.autoscaling.manifests import Metric, Scaler
from tenfold.autoscaling.proposals import (
    Proposal,
    Usage,
    for_average,
    for_pods_average,
    for_utilization,
    for_value,
)
from tenfold.autoscaling.simulation import Observation, Outcome, Policy, Service, simulate
from tenfold.autoscaling.traces import STEP_S
from tenfold.errors import SettingsError

__all__ = [
    "cheapest_change",
    "first_number",
    "hpa_policy",
    "oracle",
    "scheduled",
    "seconds_to_reach",
    "static_peak",
    "target_rate",
    "target_tracking",
]


def hpa_policy(scaler: Scaler, service: Service, *, rate_metric: str = "") -> Policy:
    """The scaler, by the functions of :mod:`.hpa`.

    Args:
        rate_metric: the name of the metric that is the request rate; without, one whose name says so.

    Raises:
        SettingsError: a metric is neither CPU, memory nor the request rate.
    """
    proposers = [_proposer(metric, scaler, service, rate_metric) for metric in scaler.metrics]
    hpa, state, idle_since = scaler.hpa, State(), math.inf

    def decide(seen: Observation) -> tuple[int, Decision | None]:
        nonlocal state, idle_since
        if scaler.from_zero:
            idle_since = min(idle_since, seen.now) if seen.rate <= 0 else math.inf
            if seen.current == 0:
                return (hpa.min_replicas if seen.rate > 0 else 0), None
            if seen.now - idle_since >= scaler.cooldown_s:
                return 0, None
        proposals = [propose(seen) for propose in proposers]
        decision, state = reconcile(hpa, seen.current, proposals, state, now=seen.now)
        return decision.replicas, decision

    return decide


def _proposer(
    metric: Metric, scaler: Scaler, service: Service, rate_metric: str
) -> Callable[[Observation], Proposal]:
    """What computes one metric's proposal from what is seen."""
    name, target, tolerance = metric.name, metric.target, scaler.tolerance
    cap, cpu, request = service.instance_rps, service.cpu, service.cpu_request
    if metric.source in ("Resource", "ContainerResource"):
        if name not in ("cpu", "memory"):
            raise SettingsError(
                f"{scaler.place}: the resource {name!r} cannot be simulated: cpu and memory can"
            )

        def usage(seen: Observation) -> Usage:
            counted = seen.ready - seen.fresh if name == "cpu" else seen.ready
            if name == "memory":
                each, total = 100, service.memory_percent * counted
            else:
                each = request
                total = int(seen.served / cap * cpu * counted / seen.ready) if seen.ready else 0
            unready = (each,) * (seen.pending + seen.starting + seen.fresh) if name == "cpu" else ()
            missing = () if name == "cpu" else (each,) * (seen.pending + seen.starting)
            return Usage(total, counted * each, counted, counted, unready, missing)

        if metric.kind == "Utilization":
            return lambda seen: _named(
                for_utilization(seen.current, target, usage(seen), tolerance=tolerance), name
            )
        if name == "memory":
            raise SettingsError(
                f"{scaler.place}: an average of memory cannot be simulated: a utilization can"
            )
        return lambda seen: _named(
            for_pods_average(seen.current, target, usage(seen), tolerance=tolerance), name
        )
    if name != rate_metric and not _is_rate(name, scaler):
        raise SettingsError(
            f"{scaler.place}: the metric {name[:60]!r} is neither cpu nor memory: "
            "write --rate-metric with its name if it is the request rate"
        )
    if target < 1:
        raise SettingsError(f"{scaler.place}: the threshold of {name[:60]!r} is not known")
    if metric.source == "Pods":

        def average(seen: Observation) -> Proposal:
            total = int(seen.served * 1000)
            seen_by = Usage(total, 0, seen.ready, seen.ready, (0,) * seen.pending, (0,) * seen.starting)
            return for_pods_average(seen.current, target, seen_by, tolerance=tolerance)

        return lambda seen: _named(average(seen), name)
    if metric.kind == "AverageValue":
        return lambda seen: _named(
            for_average(seen.current, target, int(seen.rate * 1000), tolerance=tolerance), name
        )
    return lambda seen: _named(
        for_value(seen.current, target, int(seen.rate * 1000), seen.ready, tolerance=tolerance), name
    )


_RATES = ("request", "rps", "qps", "http", "hits", "throughput")


def _is_rate(name: str, scaler: Scaler) -> bool:
    return any(word in name.lower() for word in _RATES) or (
        len([one for one in scaler.metrics if "esource" not in one.source]) == 1 and scaler.kind == "tenfold"
    )


def _named(proposal: Proposal, metric: str) -> Proposal:
    """A proposal with the name of its metric."""
    return Proposal(proposal.replicas, proposal.usage, metric, proposal.reason, proposal.error)


def target_rate(scaler: Scaler, service: Service) -> float:
    """The rate of one instance for which the scaler aims, by its strictest metric; requests per second."""
    rates = [service.instance_rps]
    for metric in scaler.metrics:
        if metric.name == "cpu" and metric.kind == "Utilization":
            rates.append(metric.target / 100 * service.cpu_request / service.cpu * service.instance_rps)
        elif metric.name == "cpu":
            rates.append(metric.target / service.cpu * service.instance_rps)
        elif "esource" not in metric.source and metric.kind == "AverageValue":
            rates.append(metric.target / 1000)
    return min(rates)


def static_peak(rates: Sequence[float], each: float) -> Policy:
    """As many instances as the highest rate needs, always; ``each``: the rate of one."""
    count = max(math.ceil(max(rates, default=0.0) / each), 1)
    return lambda seen: (count, None)


def oracle(rates: Sequence[float], each: float, service: Service, *, least: int, most: int) -> Policy:
    """What is needed, known in advance: as many as the highest rate until others could be ready."""
    ahead = math.ceil((service.start_s + (service.node_start_s if service.pods_per_node else 0)) / STEP_S) + 1
    needed = [
        min(max(math.ceil(max(rates[step : step + ahead + 1]) / each), least), most)
        for step in range(len(rates))
    ]
    return lambda seen: (needed[min(int(seen.now / STEP_S) + 1, len(needed) - 1)], None)


def scheduled(rates: Sequence[float], each: float, *, least: int, most: int) -> Policy:
    """A number for each hour: a fifth above the need of the day before; on the first day, above its own."""
    hour_steps = int(3600 / STEP_S)
    peaks = [max(rates[at : at + hour_steps]) for at in range(0, len(rates), hour_steps)]

    def decide(seen: Observation) -> tuple[int, Decision | None]:
        hour = int((seen.now + 300) / 3600)  # five minutes before the hour
        known = peaks[min(hour - 24 if hour >= 24 else hour, len(peaks) - 1)]
        return min(max(math.ceil(known * 1.2 / each), least), most), None

    return decide


def target_tracking(each: float, *, least: int, most: int, warm_up_s: float = 300.0) -> Policy:
    """AWS target tracking on requests per target, approximately.

    Out after three minutes above the target, in proportion; in after fifteen minutes below nine tenths of
    it. Instances that are warming up count as capacity. AWS does not publish its algorithm.
    """
    above = below = 0
    waits_until = 0.0

    def decide(seen: Observation) -> tuple[int, Decision | None]:
        nonlocal above, below, waits_until
        if seen.now % 60:
            return seen.current, None
        ratio = seen.rate / (max(seen.current, 1) * each)
        above, below = (above + 1 if ratio > 1 else 0), (below + 1 if ratio < 0.9 else 0)
        if above >= 3 and seen.now >= waits_until:
            above, waits_until = 0, seen.now + warm_up_s
            return min(max(math.ceil(seen.current * ratio), least), most), None
        if below >= 15:
            below = 0
            return max(min(math.ceil(seen.current * ratio), seen.current), least), None
        return min(max(seen.current, least), most), None

    return decide


def seconds_to_reach(scaler: Scaler, replicas: int) -> float:
    """How long the scaler takes from its least number to ``replicas`` under any load: rates alone decide."""
    hpa, state = scaler.hpa, State()
    current, now = max(hpa.min_replicas, 1), 0.0
    asked = [Proposal(max(hpa.max_replicas, replicas))]
    decision, state = reconcile(hpa, current, [Proposal(current)], state, now=-STEP_S)
    while current < replicas and now < 86_400:
        decision, state = reconcile(hpa, current, asked, state, now=now)
        current = decision.replicas
        now += STEP_S
    return now - STEP_S if current >= replicas else math.inf


def cheapest_change(
    scaler: Scaler,
    rates: Sequence[float],
    service: Service,
    *,
    allowed: float = 0.001,
    rate_metric: str = "",
    report: Callable[[str], None] = lambda what: None,
) -> tuple[str, Scaler, Outcome] | None:
    """The change of one key after which at most ``allowed`` of the requests are late, with the fewest hours.

    Tried are a higher ``minReplicas``, a lower target of the first metric, and the scale-up that Kubernetes
    has by itself: at once, 4 pods or 100 % in 15 s. None if none of them is enough.
    """

    def run(changed: Scaler) -> Outcome:
        policy = hpa_policy(changed, service, rate_metric=rate_metric)
        return simulate("", rates, service, policy, start=first_number(changed, rates, service))

    found: list[tuple[str, Scaler, Outcome]] = []
    low, high = scaler.hpa.min_replicas, scaler.hpa.max_replicas + 1
    while low < high:
        middle = (low + high) // 2
        report(f"minReplicas {middle}")
        changed = replace(scaler, hpa=replace(scaler.hpa, min_replicas=middle))
        outcome = run(changed)
        if outcome.late_share <= allowed:
            high = middle
            found = [(f"minReplicas: {middle}", changed, outcome)]
        else:
            low = middle + 1
    report("scaleUp")
    down = scaler.hpa.behavior.down if scaler.hpa.behavior else DOWN
    changed = replace(scaler, hpa=replace(scaler.hpa, behavior=Behavior(UP, down)))
    if (outcome := run(changed)).late_share <= allowed:
        found.append(("behavior.scaleUp: left out", changed, outcome))
    first = scaler.metrics[0]
    for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        report(f"{first.name} × {share:g}")
        lower = replace(first, target=max(int(first.target * share), 1))
        changed = replace(scaler, metrics=(lower, *scaler.metrics[1:]))
        if (outcome := run(changed)).late_share <= allowed:
            shown = lower.target if lower.kind == "Utilization" else f"{lower.target}m"
            found.append((f"the target of {first.name}: {shown}", changed, outcome))
            break
    return min(found, key=lambda one: one[2].replica_hours) if found else None


def first_number(scaler: Scaler, rates: Sequence[float], service: Service) -> int:
    """Instances with which a simulation starts: what the first rate needs."""
    needed = math.ceil(rates[0] / target_rate(scaler, service)) if rates else 1
    return min(max(needed, scaler.hpa.min_replicas), scaler.hpa.max_replicas)
