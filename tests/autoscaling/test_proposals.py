"""What one metric asks for: which pods count, and the arithmetic of each kind of target."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.autoscaling.proposals import (
    Pod,
    Sample,
    Tolerance,
    Usage,
    for_average,
    for_pods_average,
    for_utilization,
    for_value,
    group_pods,
)

NOW = 10_000.0
OLD = NOW - 3600


def pod(name: str = "a", **facts: Any) -> Pod:
    return Pod(name=name, **{"request": 1000, "started": OLD, "ready_changed": OLD + 60, **facts})


def used(*values: int, request: int = 1000, unready: int = 0, missing: int = 0) -> Usage:
    return Usage(
        sum(values),
        request * len(values),
        len(values),
        len(values),
        (request,) * unready,
        (request,) * missing,
    )


@pytest.mark.parametrize(
    ("facts", "sample", "group"),
    [
        ({}, Sample(500, NOW), "ready"),
        ({}, None, "missing"),
        ({"phase": "Failed"}, Sample(500, NOW), "ignored"),
        ({"phase": "Succeeded"}, Sample(500, NOW), "ignored"),
        ({"is_deleting": True}, Sample(500, NOW), "ignored"),
        ({"phase": "Pending", "is_deleting": True}, None, "ignored"),
        ({"phase": "Pending"}, None, "unready"),
        ({"is_ready": None}, Sample(500, NOW), "unready"),
        ({"started": None}, Sample(500, NOW), "unready"),
        # In the initialization period: ready, and one whole window since.
        ({"started": NOW - 100, "ready_changed": NOW - 90}, Sample(500, NOW, 60), "ready"),
        ({"started": NOW - 100, "ready_changed": NOW - 50}, Sample(500, NOW, 60), "unready"),
        ({"started": NOW - 100, "ready_changed": NOW - 60}, Sample(500, NOW, 60), "ready"),
        ({"started": NOW - 100, "ready_changed": NOW - 90, "is_ready": False}, Sample(5, NOW, 1), "unready"),
        # After it: a pod that was ready before counts, one that never was does not.
        ({"started": NOW - 300, "ready_changed": NOW - 1}, Sample(500, NOW - 900, 60), "ready"),
        ({"is_ready": False, "ready_changed": OLD + 30}, Sample(500, NOW), "ready"),
        ({"is_ready": False, "ready_changed": OLD + 29}, Sample(500, NOW), "unready"),
    ],
)
def test_which_pods_count(facts: dict[str, Any], sample: Sample | None, group: str) -> None:
    usage = group_pods([pod(**facts)], {"a": sample} if sample else {}, now=NOW, is_cpu=True)
    found = {"ready": usage.ready, "unready": len(usage.unready), "missing": len(usage.missing)}
    assert [name for name, count in found.items() if count] == ([] if group == "ignored" else [group])
    assert usage.samples == (group == "ready")


def test_readiness_matters_for_cpu_alone() -> None:
    usage = group_pods([pod(is_ready=False, started=None)], {"a": Sample(5)}, now=NOW, is_cpu=False)
    assert (usage.ready, usage.unready, usage.total) == (1, (), 5)


def test_samples_of_other_pods_count_as_samples_only() -> None:
    usage = group_pods([pod()], {"a": Sample(500, NOW), "gone": Sample(9000, NOW)}, now=NOW, is_cpu=True)
    assert (usage.total, usage.requests, usage.samples, usage.ready) == (500, 1000, 2, 1)


@pytest.mark.parametrize(
    ("current", "target", "usage", "replicas", "percent"),
    [
        (2, 50, used(600, 600), 3, 60),
        (2, 50, used(549, 551), 2, 55),  # exactly one tenth above
        (2, 50, used(560, 561), 3, 56),
        (4, 50, used(200, 200, 200, 200), 2, 20),
        (3, 70, used(709, 709, 709), 3, 70),  # 70.9 % is 70 %
        (1, 100, used(950, 9), 1, 47),
        # Unready pods use nothing on the way up, and do not count on the way down.
        (3, 50, used(900, unready=2), 3, 90),
        (3, 50, used(900, 900, unready=1), 4, 90),
        (5, 50, used(200, 200, 200, unready=2), 2, 20),
        # Missing ones use all of their request on the way down, and nothing on the way up.
        (4, 50, used(100, 100, missing=2), 4, 10),
        (4, 80, used(100, 100, 100, missing=1), 2, 10),
        (2, 50, used(900, missing=1), 2, 90),
        (2, 50, used(1500, missing=1), 3, 150),
        (2, 50, used(500, missing=1), 2, 50),
        (2, 200, used(100, missing=1), 2, 10),  # a target above 100 counts instead of the request
        (4, 300, used(100, 100, 100, missing=1), 2, 10),
        # What would turn round stays as it is.
        (2, 50, used(600, unready=3), 2, 60),
        (2, 50, used(100, 100, missing=2), 2, 10),
    ],
)
def test_utilization(current: int, target: int, usage: Usage, replicas: int, percent: int) -> None:
    proposal = for_utilization(current, target, usage)
    assert (proposal.replicas, proposal.usage) == (replicas, percent)


@pytest.mark.parametrize(
    ("current", "target", "usage", "replicas", "average"),
    [
        (2, 1000, used(1500, 1500), 3, 1500),
        (3, 1000, used(1001, 1000, 1000), 3, 1000),
        (3, 1000, used(500, 500, 400), 2, 466),
        (3, 1000, used(900, 100, missing=1), 2, 500),  # the target itself is taken for the third
        (2, 1000, used(500, missing=1), 2, 500),
        (3, 1000, used(4000, missing=2), 4, 4000),
        (3, 1000, used(4000, 2000, unready=1), 6, 3000),
    ],
)
def test_average_over_pods(current: int, target: int, usage: Usage, replicas: int, average: int) -> None:
    proposal = for_pods_average(current, target, usage)
    assert (proposal.replicas, proposal.usage) == (replicas, average)


@pytest.mark.parametrize(
    ("current", "target", "value", "ready", "replicas"),
    [
        (2, 1000, 1500, 2, 3),
        (2, 1000, 1100, 2, 2),
        (5, 1000, 3000, 2, 6),  # of the pods that are ready
        (0, 1000, 0, 0, 0),
        (0, 1000, 1, 0, 1),  # no tolerance from zero
        (0, 1000, 2500, 0, 3),
        (1, 1, 2**62, 1, 2**31 - 1),
    ],
)
def test_value(current: int, target: int, value: int, ready: int, replicas: int) -> None:
    assert for_value(current, target, value, ready).replicas == replicas


@pytest.mark.parametrize(
    ("current", "target", "value", "replicas", "average"),
    [
        (4, 1000, 6000, 6, 1500),
        (4, 1000, 4400, 4, 1100),
        (4, 1000, 4401, 5, 1101),
        (4, 1000, 0, 0, 0),
        (0, 1000, 2500, 3, 0),
        (0, 1000, 0, 0, 0),
    ],
)
def test_average_of_what_is_outside(
    current: int, target: int, value: int, replicas: int, average: int
) -> None:
    proposal = for_average(current, target, value)
    assert (proposal.replicas, proposal.usage) == (replicas, average)


def test_tolerance_has_two_directions() -> None:
    tolerance = Tolerance(up=0.5, down=0.0)
    assert for_utilization(2, 50, used(750, 750), tolerance=tolerance).replicas == 2
    assert for_utilization(2, 50, used(760, 760), tolerance=tolerance).replicas == 4
    assert for_utilization(10, 50, used(*[490] * 10), tolerance=tolerance).replicas == 10
    assert for_utilization(50, 50, used(*[490] * 50), tolerance=tolerance).replicas == 49


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        (Usage(0, 0, 0, 0), "pods might be unready"),
        (Usage(500, 0, 1, 0), "matched known pods"),
        (Usage(500, 1000, 1, 1, no_request="web-1"), "pod web-1"),
    ],
)
def test_metric_that_cannot_be_computed_says_why(usage: Usage, words: str) -> None:
    proposal = for_utilization(3, 50, usage)
    assert proposal.replicas is None
    assert words in proposal.error
    assert proposal.reason == "FailedGetResourceMetric"


def test_pod_without_a_request_is_named() -> None:
    usage = group_pods([pod(), pod("b", request=None)], {"a": Sample(5)}, now=NOW, is_cpu=True)
    assert usage.no_request == "b"


@given(
    current=st.integers(1, 500),
    target=st.integers(1, 300),
    low=st.integers(0, 4000),
    more=st.integers(0, 4000),
    unready=st.integers(0, 5),
    missing=st.integers(0, 5),
)
def test_more_usage_never_asks_for_less(
    current: int, target: int, low: int, more: int, unready: int, missing: int
) -> None:
    lower = for_utilization(current, target, used(*[low] * current, unready=unready, missing=missing))
    higher = for_utilization(current, target, used(*[low + more] * current, unready=unready, missing=missing))
    assert lower.replicas is not None and higher.replicas is not None
    assert lower.replicas <= higher.replicas
