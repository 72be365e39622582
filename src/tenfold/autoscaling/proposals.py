"""How many replicas one metric asks for, as the HorizontalPodAutoscaler's controller computes it.

Pure. Quantities are thousandths, as the controller has them ("milli": 250m CPU is 250, 1000 requests/s are
1,000,000); times are seconds on any one clock. First :func:`group_pods`, then the function for the kind of
target: ``Utilization`` of a resource, ``AverageValue`` over the pods, ``Value`` or ``AverageValue`` of
something else.

Source: the rules of Kubernetes 1.36's controller (pkg/controller/podautoscaler) and its documentation,
"Horizontal Pod Autoscaling: algorithm details".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "Pod",
    "Proposal",
    "Sample",
    "Tolerance",
    "Usage",
    "for_average",
    "for_pods_average",
    "for_utilization",
    "for_value",
    "group_pods",
]

MOST = 2**31 - 1  # replicas are an int32

# ------------------------------------------------------------------ what goes in


class Tolerance(NamedTuple):
    """Ratios of usage to target that change nothing: from 1 - ``down`` to 1 + ``up``."""

    up: float = 0.1
    down: float = 0.1

    def contains(self, ratio: float) -> bool:
        """True if the ratio changes nothing."""
        return (1.0 - self.down) <= ratio <= (1.0 + self.up)


DEFAULT_TOLERANCE = Tolerance()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod that the scaler's selector finds.

    Attributes:
        phase: ``Pending``, ``Running``, ``Succeeded``, ``Failed`` or ``Unknown``.
        is_ready: its Ready condition; None where it has none yet.
        ready_changed: when that condition changed, seconds.
        started: when the kubelet took it, seconds; None before.
        request: of its containers together, or of the one that the metric names; milli. None: one has none.
    """

    name: str
    phase: str = "Running"
    is_ready: bool | None = True
    ready_changed: float = 0.0
    started: float | None = 0.0
    is_deleting: bool = False
    request: int | None = None


class Sample(NamedTuple):
    """A pod's metric: its value in milli, when it was taken, and over how many seconds."""

    value: int
    at: float = 0.0
    window_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What the pods use, as far as it is known.

    Attributes:
        total: of all samples that count; milli.
        requests: of the pods with such samples; milli.
        samples: how many.
        ready: pods whose samples count.
        unready: the requests of the pods that are not ready yet.
        missing: the requests of the pods without a sample.
        no_request: a pod that requests none of the resource, which a utilization cannot do without.
    """

    total: int
    requests: int
    samples: int
    ready: int
    unready: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    no_request: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one metric asks for, or why it cannot be computed.

    Attributes:
        replicas: None with an error.
        usage: per cent of the requests, or milli; what the scaler's status shows.
        metric: its name.
        reason: of an error, as the controller names it: ``FailedGetResourceMetric``, ….
        error: one sentence.
    """

    replicas: int | None
    usage: int = 0
    metric: str = ""
    reason: str = ""
    error: str = ""


# ------------------------------------------------------------------ pods


def group_pods(
    pods: Sequence[Pod],
    samples: Mapping[str, Sample],
    *,
    now: float,
    is_cpu: bool,
    cpu_initialization_s: float = 300.0,
    readiness_delay_s: float = 30.0,
) -> Usage:
    """Tell pods that count from those that are unready, have no sample, or have ended.

    Readiness matters for the resource CPU alone: elsewhere only a pending pod is unready.

    Args:
        cpu_initialization_s: so long after its start a pod's CPU counts only while it is ready, from one
            whole window after it became so.
        readiness_delay_s: a pod that has been unready from its start until so long after it was never ready.
    """
    counted = dict(samples)
    requests = {pod.name: pod.request or 0 for pod in pods}
    ready = 0
    unready: list[int] = []
    missing: list[int] = []
    for pod in pods:
        if pod.is_deleting or pod.phase in ("Failed", "Succeeded"):
            counted.pop(pod.name, None)
        elif pod.phase == "Pending":
            unready.append(pod.request or 0)
            counted.pop(pod.name, None)
        elif (sample := samples.get(pod.name)) is None:
            missing.append(pod.request or 0)
        elif is_cpu and _is_unready(pod, sample, now, cpu_initialization_s, readiness_delay_s):
            unready.append(pod.request or 0)
            del counted[pod.name]
        else:
            ready += 1
    return Usage(
        total=sum(sample.value for name, sample in counted.items() if name in requests),
        requests=sum(requests[name] for name in counted if name in requests),
        samples=len(counted),
        ready=ready,
        unready=tuple(unready),
        missing=tuple(missing),
        no_request=next((pod.name for pod in pods if pod.request is None), ""),
    )


def _is_unready(pod: Pod, sample: Sample, now: float, initialization_s: float, delay_s: float) -> bool:
    if pod.is_ready is None or pod.started is None:
        return True
    if pod.started + initialization_s > now:
        return not pod.is_ready or sample.at < pod.ready_changed + sample.window_s
    return not pod.is_ready and pod.started + delay_s > pod.ready_changed


# ------------------------------------------------------------------ one metric

_NO_SAMPLES = "did not receive metrics for targeted pods (pods might be unready)"
_NO_PODS = "no pods returned by selector while calculating replica count"


def for_utilization(
    current: int, target: int, usage: Usage, *, tolerance: Tolerance = DEFAULT_TOLERANCE
) -> Proposal:
    """Replicas for a resource's utilization: per cent of what the pods request.

    Pods without a sample count as using all of their request (or the target, if that is higher) on the way
    down and nothing on the way up; unready ones as nothing on the way up.
    """
    if not usage.samples:
        return _failed(_NO_SAMPLES)
    if usage.no_request:
        return _failed(f"missing request for the resource in a container of pod {usage.no_request}")
    if not usage.requests:
        return _failed("no metrics returned matched known pods")
    percent = _divide(usage.total * 100, usage.requests)
    ratio = percent / target
    counts_unready = bool(usage.unready) and ratio > 1.0
    if not counts_unready and not usage.missing:
        if tolerance.contains(ratio):
            return Proposal(current, percent)
        return Proposal(ceil(ratio * usage.ready), percent)
    total, requests, count = usage.total, usage.requests, usage.samples
    if usage.missing and ratio != 1.0:
        requests += sum(usage.missing)
        count += len(usage.missing)
        if ratio < 1.0:
            total += sum(request * max(100, target) // 100 for request in usage.missing)
    if counts_unready:
        requests += sum(usage.unready)
        count += len(usage.unready)
    again = _divide(total * 100, requests) / target
    return Proposal(_keep_direction(current, ratio, again, count, tolerance), percent)


def for_pods_average(
    current: int, target: int, usage: Usage, *, tolerance: Tolerance = DEFAULT_TOLERANCE
) -> Proposal:
    """Replicas for an average over the pods, in milli: of a Pods metric, or of a resource's ``averageValue``.

    Pods without a sample count as exactly the target on the way down and as nothing on the way up.
    """
    if not usage.samples:
        return _failed(_NO_SAMPLES, "FailedGetPodsMetric")
    average = _divide(usage.total, usage.samples)
    ratio = average / target
    counts_unready = bool(usage.unready) and ratio > 1.0
    if not counts_unready and not usage.missing:
        if tolerance.contains(ratio):
            return Proposal(current, average)
        return Proposal(ceil(ratio * usage.ready), average)
    total, count = usage.total, usage.samples
    if usage.missing and ratio != 1.0:
        count += len(usage.missing)
        if ratio < 1.0:
            total += target * len(usage.missing)
    if counts_unready:
        count += len(usage.unready)
    again = _divide(total, count) / target
    return Proposal(_keep_direction(current, ratio, again, count, tolerance), average)


def _keep_direction(current: int, ratio: float, again: float, count: int, tolerance: Tolerance) -> int:
    """Replicas by a ratio that counts missing and unready pods; ``current`` against its direction."""
    if tolerance.contains(again) or (ratio < 1.0 < again) or (again < 1.0 < ratio):
        return current
    replicas = ceil(again * count)
    if (again < 1.0 and replicas > current) or (again > 1.0 and replicas < current):
        return current
    return replicas


def for_value(
    current: int, target: int, value: int, ready: int | None, *, tolerance: Tolerance = DEFAULT_TOLERANCE
) -> Proposal:
    """Replicas for the value of an Object or External metric, in milli.

    From no replica at all there is neither tolerance nor a pod to count: ceil(value / target).

    Args:
        ready: pods that run and are ready; None where the selector finds no pod.
    """
    ratio = value / target
    if current == 0:
        return Proposal(ceil(ratio), value)
    if tolerance.contains(ratio):
        return Proposal(current, value)
    if ready is None:
        return _failed(_NO_PODS, "FailedGetObjectMetric")
    return Proposal(ceil(ratio * ready), value)


def for_average(
    current: int, target: int, value: int, *, tolerance: Tolerance = DEFAULT_TOLERANCE
) -> Proposal:
    """Replicas for the ``averageValue`` of an Object or External metric: ceil(value / target), in milli.

    ``current``: of the target's status.
    """
    replicas = current
    ratio = value / (target * current) if current else math.inf if value > 0 else math.nan
    if not tolerance.contains(ratio):
        replicas = ceil(value / target)
    return Proposal(replicas, math.ceil(value / current) if current else 0)


def _failed(error: str, reason: str = "FailedGetResourceMetric") -> Proposal:
    return Proposal(None, reason=reason, error=error)


def _divide(one: int, other: int) -> int:
    """Divide as the controller's integers do: towards zero."""
    return one // other if (one < 0) == (other < 0) else -(-one // other)


def ceil(number: float) -> int:
    return MOST if number > MOST else math.ceil(number)
