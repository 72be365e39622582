"""Contradictions in a report: each invariant, and simulated searches against all of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from benchmarks.capacity import CASES, constant, exponential, lognormal
from benchmarks.support.virtual import Neighbour, Service
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.measure import measurement
from tenfold.measure.report.consistency import INVARIANTS, consistent_capacity, contradictions
from tenfold.measure.report.report import EndpointReport, Latency, OverloadReport, Report
from tenfold.measure.search.capacity import Capacity
from tenfold.measure.settings import MeasureSettings, Objective
from tests.measure.support.report_examples import capacity, report, trial
from tests.measure.support.virtual_measurement import RecordingGenerator, measure

LIMIT = 0.05


def bad(rate: float, **changes: Any):
    """A trial in which 57 of 94 arrivals were bad."""
    return trial(rate, offered=94, good=37, slow=57, verdict="failed", bad_share_low=0.4, **changes)


def passed(rate: float, **changes: Any):
    return trial(rate, verdict="passed", **changes)


def sound(**changes: Any) -> Report:
    endpoint = EndpointReport(
        name="GET /", requests=1200, failed=0, refused=0,
        corrected_ms=Latency(p50=1, p95=2, p99=3), raw_ms=Latency(p50=1, p95=2, p99=3),
    )  # fmt: skip
    overload = OverloadReport(
        rate=87.75,
        seconds=10.0,
        goodput=22.0,
        kept=22 / 58.5,
        refused_share=0.0,
        recovered_s=7.0,
        watched_s=15.0,
    )
    return report(**{"endpoints": (endpoint,), "overload": overload} | changes)


def test_sound_report_has_no_contradiction() -> None:
    assert contradictions(sound()) == ()


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"capacity": capacity(high=None)}, "found with ends"),
    ({"capacity": capacity(low=70.0), "overload": None}, "ends are 70.0 and 61.0"),
    ({"trials": (bad(60),)}, "60/s was decisively bad"),
    ({"trials": (bad(9), passed(20))}, "9/s was decisively bad"),
    ({"trials": (bad(58), passed(59))}, "without a notice"),
    ({"capacity": capacity(outcome="at_least", high=None), "overload": None}, "no trial passed"),
    (
        {
            "capacity": capacity(outcome="below", low=None, high=20.0),
            "trials": (passed(40),),
            "overload": None,
        },
        "no rate holds the objective, and 40/s passed",
    ),
    ({"trials": (passed(80, bad_share_low=0.3),)}, "the trial at 80/s passed"),
    ({"samples": 9, "endpoints": ()}, "percentiles of all endpoints come from 9 requests"),
    ({"samples": 99, "endpoints": ()}, "percentiles of all endpoints come from 99 requests"),
    ({"latency_ms": Latency(p50=34.0, p95=17.0, p99=251.0)}, "percentiles of all endpoints fall"),
    (
        {"latency_ms": Latency(p50=34.0, p95=217.0, p99=251.0)},
        "p95 is 217 ms beside a capacity within 200",
    ),
    ({"refused_share": 1.0, "endpoints": ()}, "100.0 % failed or were refused beside a capacity"),
    ({"measured_rate": None}, "percentiles have no rate"),
    ({"trials": (trial(10, good=1),)}, "offered 40 arrivals"),
    ({"samples": 1300}, "do not add up to 1300"),
    ({"error_share": 0.5}, "50.0 % of 1200 requests failed, and 0 did"),
    ({"capacity": None}, "an overload probe without a capacity"),
    ({"capacity": capacity(low=80.0, high=100.0)}, "within the capacity"),
    ({"capacity": capacity(low=20.0, high=61.0)}, "goodput is 22/s"),
    ({"capacity": capacity(reason="60 % failed: fix that before measuring")}, "most arrivals failed"),
    (
        {"capacity": capacity(reason="no rate failed within the budget"), "trials": (bad(80),)},
        "no rate failed, beside a failed trial",
    ),
    ({"error_share": 1.2, "endpoints": ()}, "errors: 120%"),
]


@pytest.mark.control("no two numbers of a report contradict each other", "each report breaks one invariant")
@pytest.mark.parametrize(("changes", "says"), BROKEN)
def test_contradiction_is_found(changes: dict[str, Any], says: str) -> None:
    found = contradictions(sound(**changes))
    assert any(says in sentence for sentence in found), found


def test_every_invariant_is_broken_by_a_case_here() -> None:
    broken = {one for one in INVARIANTS for changes, _ in BROKEN if list(one(sound(**changes)))}
    assert broken == set(INVARIANTS)


def found(low: float, high: float) -> Capacity:
    return Capacity("found", "budget", low, high)


@pytest.mark.parametrize(
    ("claimed", "trials", "outcome", "low", "high"),
    [
        (found(1.7, 9.4), (passed(1), bad(9.0)), "found", 1.7, 9.0),
        (found(56, 61), (passed(40), bad(50)), "found", 40, 50),
        (found(56, 61), (bad(50),), "undecided", None, None),
        (found(56, 61), (passed(20), bad(30), passed(58)), "found", 20, 61),
        (found(56, 61), (bad(30), passed(58)), "undecided", None, None),
        (found(56, 61), (passed(40), bad(58), passed(59)), "found", 56, 61),
        (found(56, 61), (passed(40), bad(60, purpose="overload")), "found", 56, 61),
        (found(56, 61), (passed(40), bad(70)), "found", 56, 61),
        (Capacity("at_least", "budget", 80), (passed(40), passed(80)), "at_least", 80, None),
        (
            Capacity("at_least", "budget", 80),
            (passed(40), passed(80, good=300, slow=20)),
            "at_least",
            40,
            None,
        ),
        (Capacity("at_least", "budget", 80), (passed(20), bad(40), passed(80)), "at_least", 20, None),
        (Capacity("at_least", "budget", 80), (bad(40), passed(80)), "undecided", None, None),
        (Capacity("below", "budget", None, 20), (passed(40),), "undecided", None, None),
        (Capacity("below", "budget", None, 20), (bad(40),), "below", None, 20),
        (Capacity("undecided", "budget"), (bad(40),), "undecided", None, None),
    ],
)
def test_claim_is_reduced_to_what_the_trials_bear_out(
    claimed: Capacity, trials: tuple[Any, ...], outcome: str, low: float | None, high: float | None
) -> None:
    left = consistent_capacity(claimed, trials, bad_share=LIMIT)
    assert (left.outcome, left.low, left.high) == (outcome, low, high)
    assert left.outcome != "undecided" or left.reason or claimed.outcome == "undecided"


# Services of every kind: sizes, work, neighbours, floors, generators that end early, budgets and objectives.
SIZES = [2.0, 8.0, 20.0, 60.0, 300.0]
NEIGHBOURS = [None, None, Neighbour(0.5, 1.0, 6.0), Neighbour(0.1, 3.0, 10.0), Neighbour(0.02, 8.0, 25.0)]


def simulated(seed: int) -> tuple[RecordingGenerator, MeasureSettings]:
    chosen = random.Random(seed)
    if chosen.random() < 0.3:
        service = chosen.choice(CASES).service
    else:
        mean_s = 1 / chosen.choice(SIZES)
        work = chosen.choice([exponential(mean_s), constant(mean_s), lognormal(mean_s, 3.0)])
        floor = chosen.choice([0.0, 0.0, 0.01, 0.04, 0.2])
        service = Service(chosen.choice([1, 1, 4]), work, chosen.choice(NEIGHBOURS), floor=floor)
    slow_ms = chosen.choice([200.0, 200.0, 1000.0, 3000.0])
    objective = Objective(slow_ms=slow_ms, bad_share=chosen.choice([0.05, 0.05, 0.01, 0.2]))
    ceiling = chosen.choice([float("inf"), float("inf"), 15.0, 100.0])
    budget_s = chosen.choice([10.0, 20.0, 45.0, 90.0])
    generator = RecordingGenerator(service, seed=seed, slow_ms=slow_ms, ceiling=ceiling)
    return generator, MeasureSettings(objective=objective, budget_s=budget_s)


def assert_consistent(seed: int) -> None:
    generator, declared = simulated(seed)
    report = measure(generator, declared)
    assert contradictions(report) == (), (seed, report.capacity)
    assert report.not_measured == tuple(line for line in report.not_measured if "a URL shows only" in line)


@pytest.mark.guarantee(
    "no two numbers of a report contradict each other",
    pattern="measure",
    under="1,000 simulated searches of every outcome",
)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1_000_000))
def test_simulated_searches_have_no_contradiction(seed: int) -> None:
    assert_consistent(seed)


@pytest.mark.slow
def test_thousand_simulated_searches_have_no_contradiction() -> None:
    for seed in range(1_000):
        assert_consistent(seed)


@pytest.mark.control(
    "no two numbers of a report contradict each other",
    "with the search's own claim simulated searches contradict their trials",
)
def test_the_control_searches_contradict_their_trials_without_the_reduction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measurement, "consistent_capacity", lambda claimed, trials, *, bad_share: claimed)
    assert any(contradictions(measure(*simulated(seed))) for seed in (19, 20, 32, 33, 35, *range(100)))
