"""Estimates of the capacity from counts of trials."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.measure.search.capacity_model import CapacityEstimate, TrialCounts, estimate_capacity
from tenfold.measure.search.sequential import ArrivalCount


def trial(rate: float, *shares: float, repeat: int = 9) -> TrialCounts:
    cycle = shares * repeat
    counts = tuple(ArrivalCount(round(rate), round(rate * share)) for share in cycle[:repeat])
    return TrialCounts(rate, repeat + 1.0, counts)


def estimate(*trials: TrialCounts, correlated: bool = True) -> CapacityEstimate:
    return estimate_capacity(trials, limit=0.05, slow_s=0.2, correlated=correlated)


SHARP = [trial(100, 0), trial(200, 0), trial(280, 0), trial(320, 1), trial(400, 1)]


def test_interval_lies_between_the_sides_of_a_sharp_step() -> None:
    found = estimate(*SHARP)
    assert 230 < found.low < found.median < found.high < 330


def test_more_trials_narrow_the_interval() -> None:
    once, thrice = estimate(*SHARP), estimate(*SHARP, *SHARP[2:4], *SHARP[2:4])
    assert thrice.high / thrice.low < once.high / once.low


def test_floor_below_the_limit_does_not_lower_the_estimate() -> None:
    noisy = [trial(rate, 0.02, 0.04, 0.03) for rate in (100, 200, 280)]
    found = estimate(*noisy, trial(320, 1), trial(400, 1))
    assert found.floor == pytest.approx(0.03, abs=0.01)
    assert found.low > 180


def test_runs_of_bad_arrivals_widen_the_interval() -> None:
    even = [trial(rate, share) for rate, share in ((80, 0.01), (100, 0.05), (120, 0.2))]
    runs = [trial(80, 0.09, *[0] * 8), trial(100, 0.45, *[0] * 8), trial(120, 0.9, 0.9, *[0] * 7)]
    smooth, rough = estimate(*even), estimate(*runs)
    assert rough.run_s > smooth.run_s
    assert rough.high / rough.low > smooth.high / smooth.low
    assert estimate(*runs, correlated=False).high < rough.high


def test_no_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="without a trial"):
        estimate()


@st.composite
def anything(draw: st.DrawFn) -> list[TrialCounts]:
    rates = draw(st.lists(st.floats(0.5, 5000), min_size=1, max_size=8))
    shares = st.lists(st.floats(0, 1), min_size=1, max_size=9)
    return [t for rate in rates if (t := trial(rate, *draw(shares))).offered]


@given(anything().filter(bool))
@settings(max_examples=60, deadline=None)
def test_quantiles_are_in_order_for_any_counts(trials: list[TrialCounts]) -> None:
    found = estimate(*trials)
    rates = [t.rate for t in trials]
    assert min(rates) / 2.01 <= found.low <= found.q30 <= found.median
    assert found.median <= found.q70 <= found.high <= max(rates) * 1.51
    assert 0 <= found.floor <= 0.05
