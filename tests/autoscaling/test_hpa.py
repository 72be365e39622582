"""From what metrics ask for to the number of replicas: several metrics, windows, rates, bounds, reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.autoscaling import hpa as module
from tenfold.autoscaling.hpa import (
    DOWN,
    UP,
    Behavior,
    Decision,
    Hpa,
    PolicyRule,
    Recommendation,
    ScaleEvent,
    ScalingRules,
    State,
    combine,
    limit_by_behavior,
    limit_rate,
    reconcile,
    remember,
    stabilize,
    stabilize_by_behavior,
)
from tenfold.autoscaling.proposals import Proposal
from tenfold.autoscaling.traces import STEP_S

NOW = 100_000.0
DONE, VALID, WITHIN = "SucceededRescale", "ValidMetricFound", "DesiredWithinRange"
HELD, MOST = "ScaleUpStabilized", "TooManyReplicas"
HALF = Behavior(up=ScalingRules(UP.policies, 60))
TWO = (PolicyRule("Pods", 3, 60), PolicyRule("Percent", 10, 60))
BROKEN = Proposal(None, reason="FailedGetPodsMetric", error="no metric")


def wishes(*pairs: tuple[int, float]) -> tuple[Recommendation, ...]:
    """Recommendations, each with its age."""
    return tuple(Recommendation(replicas, NOW - age) for replicas, age in pairs)


def events(*pairs: tuple[int, float]) -> tuple[ScaleEvent, ...]:
    return tuple(ScaleEvent(change, NOW - age) for change, age in pairs)


# ------------------------------------------------------------------ stages


@pytest.mark.parametrize(
    ("current", "asked", "expected"),
    [
        (5, [3, 7, 4], 7),
        (5, [3, None], None),  # one is missing: not down
        (5, [5, None], 5),
        (5, [8, None], 8),
        (5, [None, None], None),
        (5, [], None),
        (0, [0, 0], 0),
    ],
)
def test_largest_wish_counts_and_a_missing_metric_holds(
    current: int, asked: list[int | None], expected: int | None
) -> None:
    proposals = [BROKEN if replicas is None else Proposal(replicas) for replicas in asked]
    assert combine(current, proposals).replicas == expected


@pytest.mark.parametrize(
    ("desired", "recent", "expected"),
    [
        (3, wishes(), 3),
        (3, wishes((6, 100), (4, 50)), 6),
        (3, wishes((6, 300)), 6),  # of the window's exact age
        (3, wishes((6, 300.5)), 3),
        (9, wishes((6, 10)), 9),
    ],
)
def test_without_behavior_the_highest_wish_of_five_minutes_counts(
    desired: int, recent: Sequence[Recommendation], expected: int
) -> None:
    assert stabilize(desired, recent, now=NOW) == expected


@pytest.mark.parametrize(
    ("current", "desired", "recent", "expected"),
    [
        (5, 9, wishes((7, 59), (6, 10)), 6),
        (5, 9, wishes((7, 60)), 9),  # of the window's exact age: no longer
        (5, 9, wishes((3, 30)), 5),  # not below what there is
        (9, 2, wishes((4, 119), (8, 120)), 4),
        (9, 2, wishes((12, 10)), 9),  # not above what there is
        (9, 2, wishes(), 2),
    ],
)
def test_windows_of_a_behavior(
    current: int, desired: int, recent: Sequence[Recommendation], expected: int
) -> None:
    behavior = Behavior(ScalingRules(UP.policies, 60), ScalingRules(DOWN.policies, 120))
    assert stabilize_by_behavior(current, desired, recent, behavior, now=NOW) == expected


@pytest.mark.parametrize(
    ("current", "desired", "least", "most", "expected", "reason"),
    [
        (4, 6, 1, 10, 6, "DesiredWithinRange"),
        (4, 12, 1, 10, 8, "ScaleUpLimit"),
        (4, 12, 1, 8, 8, "TooManyReplicas"),
        (1, 9, 1, 10, 4, "ScaleUpLimit"),  # four at least
        (5, 1, 2, 10, 2, "TooFewReplicas"),
        (1, 0, 0, 10, 0, "DesiredWithinRange"),
    ],
)
def test_rate_without_behavior(
    current: int, desired: int, least: int, most: int, expected: int, reason: str
) -> None:
    assert limit_rate(current, desired, least, most) == (expected, reason)


PODS_UP = PolicyRule("Pods", 3, 60)
PERCENT_UP = PolicyRule("Percent", 50, 60)


@pytest.mark.parametrize(
    ("rules", "current", "ups", "downs", "expected", "reason"),
    [
        (ScalingRules((PODS_UP,), 0), 10, (), (), 13, "ScaleUpLimit"),
        (ScalingRules((PERCENT_UP,), 0), 11, (), (), 17, "ScaleUpLimit"),  # rounded up
        (ScalingRules((PODS_UP, PERCENT_UP), 0), 10, (), (), 15, "ScaleUpLimit"),
        (ScalingRules((PODS_UP, PERCENT_UP), 0, "Min"), 10, (), (), 13, "ScaleUpLimit"),
        (ScalingRules((PODS_UP,), 0, "Disabled"), 10, (), (), 10, "ScaleUpLimit"),
        (ScalingRules((PODS_UP,), 0), 10, events((2, 59)), (), 11, "ScaleUpLimit"),
        (ScalingRules((PODS_UP,), 0), 10, events((2, 60)), (), 13, "ScaleUpLimit"),  # a period ago
        (ScalingRules((PODS_UP,), 0), 10, events((9, 30)), (), 10, "ScaleUpLimit"),  # never below
        (ScalingRules((PODS_UP,), 0), 10, (), events((4, 30)), 17, "ScaleUpLimit"),  # it had 14
        (ScalingRules((PolicyRule("Pods", 90, 60),), 0), 10, (), (), 50, "TooManyReplicas"),
    ],
)
def test_rates_upwards(
    rules: ScalingRules,
    current: int,
    ups: tuple[ScaleEvent, ...],
    downs: tuple[ScaleEvent, ...],
    expected: int,
    reason: str,
) -> None:
    state = State((), ups, downs)
    assert limit_by_behavior(current, 80, 1, 50, Behavior(up=rules), state, now=NOW) == (expected, reason)


@pytest.mark.parametrize(
    ("rules", "current", "ups", "downs", "expected", "reason"),
    [
        (ScalingRules((PolicyRule("Pods", 3, 60),), 0), 10, (), (), 7, "ScaleDownLimit"),
        (ScalingRules((PolicyRule("Percent", 10, 60),), 0), 15, (), (), 13, "ScaleDownLimit"),  # cut off
        (ScalingRules(TWO, 0), 10, (), (), 7, "ScaleDownLimit"),
        (ScalingRules(TWO, 0, "Min"), 10, (), (), 9, "ScaleDownLimit"),
        (ScalingRules((PolicyRule("Pods", 3, 60),), 0, "Disabled"), 10, (), (), 10, "ScaleDownLimit"),
        (ScalingRules((PolicyRule("Pods", 3, 60),), 0), 10, (), events((2, 30)), 9, "ScaleDownLimit"),
        (ScalingRules((PolicyRule("Pods", 3, 60),), 0), 10, (), events((5, 30)), 10, "ScaleDownLimit"),
        (ScalingRules((PolicyRule("Percent", 100, 60),), 0), 10, (), (), 4, "TooFewReplicas"),
    ],
)  # fmt: skip
def test_rates_downwards(
    rules: ScalingRules,
    current: int,
    ups: tuple[ScaleEvent, ...],
    downs: tuple[ScaleEvent, ...],
    expected: int,
    reason: str,
) -> None:
    state = State((), ups, downs)
    assert limit_by_behavior(current, 1, 4, 50, Behavior(down=rules), state, now=NOW) == (expected, reason)


def test_new_entry_takes_the_place_of_the_last_that_is_too_old() -> None:
    old = wishes((1, 500), (2, 10), (3, 400), (4, 300))
    new = Recommendation(9, NOW)
    assert [one.replicas for one in remember(old, new, NOW - 300)] == [1, 2, 9, 4]
    assert [one.replicas for one in remember(old[1:2], new, NOW - 300)] == [2, 9]


# ------------------------------------------------------------------ the whole


def decide(hpa: Hpa, current: int, *asked: int | None, state: State | None = None) -> tuple[Decision, State]:
    proposals = [
        BROKEN if replicas is None else Proposal(replicas, metric=f"m{replicas}") for replicas in asked
    ]
    return reconcile(hpa, current, proposals, state or State(), now=NOW)


@pytest.mark.parametrize(
    ("hpa", "current", "asked", "expected"),
    [
        (Hpa(max_replicas=10), 3, [5], Decision(5, "m5", 5, DONE, VALID, WITHIN)),
        (Hpa(max_replicas=10), 3, [3], Decision(3, "m3", 3, "ReadyForNewScale", VALID, WITHIN)),
        (Hpa(max_replicas=10), 3, [2], Decision(3, "m2", 2, "ScaleDownStabilized", VALID, WITHIN)),
        (Hpa(max_replicas=10), 3, [9], Decision(6, "m9", 9, DONE, VALID, "ScaleUpLimit", True)),
        (Hpa(max_replicas=4), 3, [9], Decision(4, "m9", 9, DONE, VALID, "TooManyReplicas", True)),
        (Hpa(max_replicas=4), 4, [9], Decision(4, "m9", 9, "ReadyForNewScale", VALID, MOST, True)),
        (Hpa(max_replicas=4), 9, [9], Decision(4, able=DONE)),
        (Hpa(max_replicas=9, min_replicas=3), 1, [9], Decision(3, able=DONE)),
        (Hpa(max_replicas=9), 0, [9], Decision(0, active="ScalingDisabled")),
        (Hpa(max_replicas=9, min_replicas=0), 0, [2], Decision(2, "m2", 2, DONE, VALID, WITHIN)),
        (Hpa(max_replicas=9), 3, [None], Decision(3, active="FailedGetPodsMetric", error="no metric")),
        (Hpa(max_replicas=9), 3, [2, None], Decision(3, active="FailedGetPodsMetric", error="no metric")),
        (Hpa(max_replicas=9), 3, [4, None], Decision(4, "m4", 4, DONE, VALID, WITHIN, error="no metric")),
        (Hpa(max_replicas=9, behavior=HALF), 3, [5], Decision(3, "m5", 5, HELD, VALID, WITHIN)),
        (Hpa(max_replicas=9, behavior=Behavior()), 3, [5], Decision(5, "m5", 5, DONE, VALID, WITHIN)),
    ],
)  # fmt: skip
def test_decision_and_its_reasons(
    hpa: Hpa, current: int, asked: list[int | None], expected: Decision
) -> None:
    assert decide(hpa, current, *asked)[0] == expected


def test_changes_are_events_only_with_a_behavior() -> None:
    assert decide(Hpa(max_replicas=9), 3, 5)[1].ups == ()
    state = decide(Hpa(max_replicas=9, behavior=Behavior()), 3, 5)[1]
    assert (state.ups, state.downs) == ((ScaleEvent(2, NOW),), ())
    corrected = decide(Hpa(max_replicas=4, behavior=Behavior()), 9, 5)[1]
    assert (corrected.ups, corrected.downs) == ((), (ScaleEvent(5, NOW),))


def test_half_more_each_minute_takes_525_seconds_from_3_to_100() -> None:
    from tenfold.autoscaling.policies import seconds_to_reach
    from tenfold.autoscaling.settings import AutoscalingSettings

    assert seconds_to_reach(AutoscalingSettings().scaler(), 100) == 525


RULES = st.builds(
    ScalingRules,
    st.lists(
        st.builds(PolicyRule, st.sampled_from(["Pods", "Percent"]), st.integers(1, 200), st.integers(1, 600)),
        min_size=1,
        max_size=3,
    ).map(tuple),
    st.integers(0, 600).map(float),
    st.sampled_from(["Max", "Min", "Disabled"]),
)
BEHAVIORS = st.builds(Behavior, RULES, RULES)


def allowed_in_any_period(behavior: Behavior, numbers: Sequence[int]) -> bool:
    """Whether no change goes farther from what there was a period before than the only policy allows."""
    for rules, sign in ((behavior.up, 1), (behavior.down, -1)):
        if len(rules.policies) > 1 or rules.select == "Disabled":
            continue
        kind, value, period_s = rules.policies[0]
        for at in range(1, len(numbers)):
            start = numbers[max(at - 1 - math.ceil(period_s / STEP_S) + 1, 0)]
            most = value if kind == "Pods" else start * value / 100 + 1
            if (numbers[at] - numbers[at - 1]) * sign > 0 and (numbers[at] - start) * sign > most:
                return False
    return True


def run(hpa: Hpa, asked: Sequence[int]) -> list[int]:
    current, state, numbers = hpa.min_replicas, State(), [hpa.min_replicas]
    for step, replicas in enumerate(asked):
        decision, state = reconcile(hpa, current, [Proposal(replicas)], state, now=step * 15.0)
        current = decision.replicas
        numbers.append(current)
    return numbers


@pytest.mark.guarantee(
    "no decision leaves the bounds or outruns a policy",
    pattern="autoscaling",
    under="any wishes, any behavior",
)
@given(behavior=BEHAVIORS, asked=st.lists(st.integers(0, 300), max_size=60), least=st.integers(1, 20))
def test_no_decision_leaves_the_bounds_or_outruns_a_policy(
    behavior: Behavior, asked: list[int], least: int
) -> None:
    numbers = run(Hpa(min_replicas=least, max_replicas=200, behavior=behavior), asked)
    assert all(least <= number <= 200 for number in numbers)
    assert allowed_in_any_period(behavior, numbers)


@pytest.mark.control("no decision leaves the bounds or outruns a policy", "events are forgotten")
def test_the_control_without_events_a_policy_is_outrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_changed", lambda events, cutoff: 0)
    behavior = Behavior(ScalingRules((PolicyRule("Pods", 4, 60),), 0))
    numbers = run(Hpa(max_replicas=200, behavior=behavior), [200] * 10)
    assert not allowed_in_any_period(behavior, numbers)


@given(asked=st.lists(st.integers(0, 300), max_size=60), more=st.integers(0, 50))
def test_more_wished_for_is_never_fewer(asked: list[int], more: int) -> None:
    hpa = Hpa(max_replicas=200)
    fewer, larger = run(hpa, asked), run(hpa, [replicas + more for replicas in asked])
    assert all(one <= other for one, other in zip(fewer, larger, strict=True))
