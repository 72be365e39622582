"""Summary of trials: percentiles need enough requests, and stand beside the capacity that they belong to."""

from __future__ import annotations

import pytest

from tenfold.measure.load import histogram
from tenfold.measure.report.summary import bad_share_low, endpoints, latency, latency_note, near_capacity
from tenfold.measure.search.capacity import Capacity
from tenfold.measure.settings import Objective
from tenfold.measure.trial import Block, Endpoint, GeneratorHealth, Trial, TrialRequest

CALM = GeneratorHealth(cpu_share=0.3, late_share=0.0, lag_p99_ms=0.2)


def trial(rate: float, *, bad: float = 0.0, offered: int = 400, purpose: str = "search") -> Trial:
    """A trial of ten seconds whose bad arrivals are spread evenly and took 400 ms."""
    each = offered // 20
    slow = round(each * bad)
    blocks = tuple(Block(n / 2, 0.5, each, each - slow, slow=slow) for n in range(20))
    encoded = histogram.encode([100.0] * (20 * (each - slow)) + [400.0] * (20 * slow))
    endpoint = Endpoint("GET /", 20 * each, 0, 0, {}, encoded, encoded)
    request = TrialRequest(rate, 10.0, purpose, 1)  # type: ignore[arg-type]
    return Trial(request, 10.0, 0.3, blocks, CALM, (endpoint,), encoded, encoded, requests=20 * each)


@pytest.mark.parametrize(
    ("requests", "has_p95", "has_p99"),
    [(0, 0, 0), (9, 0, 0), (19, 0, 0), (20, 1, 0), (99, 1, 0), (100, 1, 1)],
)
def test_percentiles_need_enough_requests(requests: int, has_p95: int, has_p99: int) -> None:
    found = latency([histogram.encode([50.0] * requests)])
    assert (found is not None) == has_p95
    assert found is None or (found.p99 is not None) == has_p99


def test_endpoint_with_few_requests_has_counts_and_no_percentiles() -> None:
    encoded = histogram.encode([50.0] * 9)
    few = Endpoint("GET /rare", 9, 1, 0, {}, encoded, encoded)
    found = endpoints([Trial(TrialRequest(1, 9, "search", 1), 9, 0, (), CALM, (few,))])
    assert [(one.requests, one.failed, one.corrected_ms) for one in found] == [(9, 1, None)]


INTERVAL = Capacity("found", "width", 50.0, 60.0)


@pytest.mark.parametrize(
    ("trials", "rates", "noted"),
    [
        ((trial(20), trial(48), trial(54), trial(58)), [48, 54], ""),
        ((trial(48), trial(54, bad=0.5)), [48], ""),
        ((trial(20), trial(48, bad=0.1), trial(54, bad=0.5)), [20], ""),
        ((trial(20, offered=20), trial(54, bad=0.5)), [20], ""),
        (
            (trial(54, bad=0.5),),
            [54],
            "p95 is above the objective at this rate",
        ),
        (
            (trial(48, bad=0.1),),
            [48],
            "p95 is above the objective in these trials",
        ),
        ((trial(30, bad=0.1), trial(90, bad=0.9)), [30], "p95 is above the objective in these trials"),
        ((trial(54, purpose="overload"), trial(20)), [20], ""),
    ],
)
def test_percentiles_stand_at_a_rate_that_meets_the_objective(
    trials: tuple[Trial, ...], rates: list[float], noted: str
) -> None:
    near = near_capacity(trials, INTERVAL)
    assert [one.request.rate for one in near] == rates
    note = latency_note(latency(t.corrected for t in near), INTERVAL, near, objective=Objective())
    assert note.startswith(noted) and bool(note) == bool(noted)


def test_requests_of_few_arrivals_may_miss_what_arrivals_meet() -> None:
    near = [trial(50)]
    slow = latency([histogram.encode([100.0] * 90 + [400.0] * 10)])
    note = latency_note(slow, INTERVAL, near, objective=Objective())
    assert note == "p95 is above the objective, which counts arrivals: 0.0 % of them were bad"


@pytest.mark.parametrize(("bad", "above"), [(0.0, False), (0.05, False), (0.6, True), (1.0, True)])
def test_lower_limit_of_the_bad_share(bad: float, above: bool) -> None:
    assert (bad_share_low(trial(9, bad=bad).blocks) > 0.05) == above


def test_one_run_of_bad_arrivals_is_not_decisive() -> None:
    """Two bad seconds of ten are one event, not forty."""
    blocks = [Block(n / 2, 0.5, 10, 0 if n in (6, 7, 8, 9) else 10, slow=0) for n in range(20)]
    assert bad_share_low(blocks) < 0.05
    assert bad_share_low([Block(n / 2, 0.5, 10, 8) for n in range(20)]) > 0.05
