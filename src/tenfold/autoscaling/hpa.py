"""How many replicas: the HorizontalPodAutoscaler's algorithm (autoscaling/v2), as its controller computes it.

Pure: each stage takes plain values and returns some. :mod:`.proposals` has what each metric asks for; here
are :func:`combine`, then :func:`stabilize` and :func:`limit_rate`, or with ``behavior``
:func:`stabilize_by_behavior` and :func:`limit_by_behavior`; :func:`remember` is what the controller keeps.
:func:`reconcile` is all of them.

Source: as in :mod:`.proposals`. A ``behavior`` says what Kubernetes' API fills in: 4 pods or 100 % in 15 s up
at once, 100 % in 15 s down after 300 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

from tenfold.autoscaling.proposals import Proposal, ceil

__all__ = [
    "Behavior",
    "Decision",
    "Hpa",
    "PolicyRule",
    "Recommendation",
    "ScaleEvent",
    "ScalingRules",
    "State",
    "combine",
    "limit_by_behavior",
    "limit_rate",
    "reconcile",
    "remember",
    "stabilize",
    "stabilize_by_behavior",
]

# ------------------------------------------------------------------ all metrics


def combine(current: int, proposals: Sequence[Proposal]) -> Proposal:
    """The largest of what the metrics ask for.

    If one cannot be computed, the others only raise the number: where they would lower it, or where none is
    left, the result is the first error.
    """
    best: Proposal | None = None
    error: Proposal | None = None
    for proposal in proposals:
        if proposal.replicas is None:
            error = error or proposal
        elif best is None or best.replicas is None or best.replicas == 0 or proposal.replicas > best.replicas:
            best = proposal
    if best is None or best.replicas is None:
        return error or Proposal(None, reason="InvalidMetricSourceType", error="there is no metric")
    return error if error is not None and best.replicas < current else best


# ------------------------------------------------------------------ stabilization and rates


class PolicyRule(NamedTuple):
    """At most so many ``Pods`` or ``Percent`` in a period."""

    type: Literal["Pods", "Percent"]
    value: int
    period_s: float


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """How fast in one direction.

    Attributes:
        window_s: stabilization window.
        select: which of the policies counts; ``Disabled``: never in this direction.
    """

    policies: tuple[PolicyRule, ...]
    window_s: float
    select: Literal["Max", "Min", "Disabled"] = "Max"

    @property
    def longest_s(self) -> float:
        """The longest period."""
        return max((policy.period_s for policy in self.policies), default=0.0)


UP = ScalingRules((PolicyRule("Pods", 4, 15), PolicyRule("Percent", 100, 15)), window_s=0.0)
DOWN = ScalingRules((PolicyRule("Percent", 100, 15),), window_s=300.0)


@dataclass(frozen=True, slots=True)
class Behavior:
    """``behavior`` of a scaler; what it leaves out is as Kubernetes has it."""

    up: ScalingRules = UP
    down: ScalingRules = DOWN


class Recommendation(NamedTuple):
    """What was asked for, before stabilization."""

    replicas: int
    at: float


class ScaleEvent(NamedTuple):
    """Replicas added or removed; positive."""

    change: int
    at: float


@dataclass(frozen=True, slots=True)
class State:
    """What the controller remembers of a scaler."""

    recommendations: tuple[Recommendation, ...] = ()
    ups: tuple[ScaleEvent, ...] = ()
    downs: tuple[ScaleEvent, ...] = ()


def stabilize(
    desired: int, recommendations: Sequence[Recommendation], *, now: float, window_s: float = 300.0
) -> int:
    """Without ``behavior``: the highest recommendation of the window; one of its exact age counts."""
    cutoff = now - window_s
    for replicas, at in recommendations:
        if replicas > desired and at >= cutoff:
            desired = replicas
    return desired


def stabilize_by_behavior(
    current: int, desired: int, recommendations: Sequence[Recommendation], behavior: Behavior, *, now: float
) -> int:
    """With ``behavior``: stay between the lowest of the up window and the highest of the down window.

    A recommendation of a window's exact age no longer counts.
    """
    lowest = highest = desired
    up, down = now - behavior.up.window_s, now - behavior.down.window_s
    for replicas, at in recommendations:
        if replicas < lowest and at > up:
            lowest = replicas
        elif replicas > highest and at > down:
            highest = replicas
    return min(max(current, lowest), highest)


def limit_rate(current: int, desired: int, least: int, most: int) -> tuple[int, str]:
    """Without ``behavior``: at most the larger of twice the current number and 4; and the scaler's bounds.

    Returns:
        The number, and the controller's reason.
    """
    fastest = max(2 * current, 4)
    reason = "ScaleUpLimit" if most > fastest else "TooManyReplicas"
    if desired < least:
        return least, "TooFewReplicas"
    if desired > min(most, fastest):
        return min(most, fastest), reason
    return desired, "DesiredWithinRange"


def limit_by_behavior(
    current: int, desired: int, least: int, most: int, behavior: Behavior, state: State, *, now: float
) -> tuple[int, str]:
    """With ``behavior``: no faster than its policies, and within the scaler's bounds.

    Returns:
        The number, and the controller's reason.
    """
    if desired > current:
        fastest = max(_allowed(current, behavior.up, state, now, is_up=True), current)
        if desired > min(most, fastest):
            return min(most, fastest), "ScaleUpLimit" if most > fastest else "TooManyReplicas"
    elif desired < current:
        fastest = min(_allowed(current, behavior.down, state, now, is_up=False), current)
        if desired < max(least, fastest):
            return max(least, fastest), "ScaleDownLimit" if least < fastest else "TooFewReplicas"
    return desired, "DesiredWithinRange"


def _allowed(current: int, rules: ScalingRules, state: State, now: float, *, is_up: bool) -> int:
    """The number to which policies allow to go: each counts from what there was when its period began."""
    if rules.select == "Disabled" or not rules.policies:
        return current
    limits = []
    for kind, value, period_s in rules.policies:
        start = current - _changed(state.ups, now - period_s) + _changed(state.downs, now - period_s)
        if kind == "Pods":
            limits.append(start + value if is_up else start - value)
        elif is_up:
            limits.append(ceil(start * (1 + value / 100)))
        else:
            limits.append(int(start * (1 - value / 100)))
    return max(limits) if is_up == (rules.select == "Max") else min(limits)


def _changed(events: Iterable[ScaleEvent], cutoff: float) -> int:
    return sum(change for change, at in events if at > cutoff)


# ------------------------------------------------------------------ the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Hpa:
    """A HorizontalPodAutoscaler's bounds and behavior.

    Attributes:
        downscale_s: without ``behavior``; the controller's
            ``--horizontal-pod-autoscaler-downscale-stabilization``.
    """

    max_replicas: int
    min_replicas: int = 1
    behavior: Behavior | None = None
    downscale_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas, and why.

    Attributes:
        replicas: the number from now on.
        metric: which one asked for most.
        asked: what it asked for, before stabilization and limits; None where no metric was looked at.
        able: the reason of AbleToScale.
        active: the reason of ScalingActive; empty where it does not change.
        limited: the reason of ScalingLimited; empty where it does not change.
        is_limited: whether that condition holds.
        error: one sentence where a metric could not be computed.
    """

    replicas: int
    metric: str = ""
    asked: int | None = None
    able: str = "SucceededGetScale"
    active: str = ""
    limited: str = ""
    is_limited: bool = False
    error: str = ""


def reconcile(
    hpa: Hpa, current: int, proposals: Sequence[Proposal], state: State, *, now: float
) -> tuple[Decision, State]:
    """One look of the controller at a scaler, each 15 s by default.

    Args:
        current: the target's ``spec.replicas``.
        proposals: one for each metric.

    Returns:
        The decision, and the state for the next look.
    """
    remembered = state.recommendations or (Recommendation(current, now),)
    if current == 0 and hpa.min_replicas != 0:
        return Decision(0, active="ScalingDisabled"), _with(state, remembered)
    if current > hpa.max_replicas:
        return _rescaled(hpa, current, hpa.max_replicas, _with(state, remembered), now, Decision(0))
    if current < hpa.min_replicas:
        return _rescaled(hpa, current, hpa.min_replicas, _with(state, remembered), now, Decision(0))
    best = combine(current, proposals)
    if best.replicas is None:
        return Decision(current, active=best.reason, error=best.error), _with(state, remembered)
    asked = max(best.replicas, 0)
    error = next((proposal.error for proposal in proposals if proposal.replicas is None), "")
    if (behavior := hpa.behavior) is None:
        stable = stabilize(asked, remembered, now=now, window_s=hpa.downscale_s)
        desired, limited = limit_rate(current, stable, hpa.min_replicas, hpa.max_replicas)
        oldest = now - hpa.downscale_s
        held = "ScaleDownStabilized"
    else:
        stable = stabilize_by_behavior(current, asked, remembered, behavior, now=now)
        desired, limited = limit_by_behavior(
            current, stable, hpa.min_replicas, hpa.max_replicas, behavior, state, now=now
        )
        oldest = now - max(behavior.up.window_s, behavior.down.window_s)
        held = "ScaleUpStabilized" if asked >= current else "ScaleDownStabilized"
    recommendations = remember(remembered, Recommendation(asked, now), oldest)
    decision = Decision(
        desired,
        best.metric,
        asked,
        able=held if stable != asked else "ReadyForNewScale",
        active="ValidMetricFound",
        limited=limited,
        is_limited=desired != stable,
        error=error,
    )
    if desired == current:
        return decision, _with(state, recommendations)
    return _rescaled(hpa, current, desired, _with(state, recommendations), now, decision)


_Timed = TypeVar("_Timed", Recommendation, ScaleEvent)


def remember(entries: tuple[_Timed, ...], new: _Timed, oldest: float) -> tuple[_Timed, ...]:
    """Put a new entry in the place of the last one that is too old; the others wait until they are needed."""
    old = [index for index, entry in enumerate(entries) if entry.at < oldest]
    if not old:
        return entries + (new,)  # noqa: RUF005 - keeps the type
    return entries[: old[-1]] + (new,) + entries[old[-1] + 1 :]  # noqa: RUF005


def _with(state: State, recommendations: tuple[Recommendation, ...]) -> State:
    return State(recommendations, state.ups, state.downs)


def _rescaled(
    hpa: Hpa, current: int, desired: int, state: State, now: float, decision: Decision
) -> tuple[Decision, State]:
    """A change of the number; with ``behavior`` it is an event that policies count."""
    ups, downs = state.ups, state.downs
    if hpa.behavior is not None and desired > current:
        ups = remember(ups, ScaleEvent(desired - current, now), now - hpa.behavior.up.longest_s)
    elif hpa.behavior is not None:
        downs = remember(downs, ScaleEvent(current - desired, now), now - hpa.behavior.down.longest_s)
    changed = Decision(
        desired, decision.metric, decision.asked, "SucceededRescale", decision.active,
        decision.limited, decision.is_limited, decision.error,
    )  # fmt: skip
    return changed, State(state.recommendations, ups, downs)
