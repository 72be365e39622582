"""The rate at which a share crosses its limit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.measure.search.capacity_model import Crossing, Sample, crossing
from tenfold.measure.search.sequential import Count


def sample(rate: float, *shares: float, repeat: int = 9) -> Sample:
    cycle = shares * repeat
    counts = tuple(Count(round(rate), round(rate * share)) for share in cycle[:repeat])
    return Sample(rate, repeat + 1.0, counts)


def cross(*samples: Sample, correlated: bool = True) -> Crossing:
    return crossing(samples, limit=0.05, slow_s=0.2, correlated=correlated)


SHARP = [sample(100, 0), sample(200, 0), sample(280, 0), sample(320, 1), sample(400, 1)]


def test_a_sharp_step_is_crossed_between_its_sides() -> None:
    found = cross(*SHARP)
    assert 230 < found.low < found.middle < found.high < 330


def test_more_trials_narrow_the_interval() -> None:
    once, thrice = cross(*SHARP), cross(*SHARP, *SHARP[2:4], *SHARP[2:4])
    assert thrice.high / thrice.low < once.high / once.low


def test_a_floor_below_the_limit_is_no_crossing() -> None:
    noisy = [sample(rate, 0.02, 0.04, 0.03) for rate in (100, 200, 280)]
    found = cross(*noisy, sample(320, 1), sample(400, 1))
    assert found.floor == pytest.approx(0.03, abs=0.01)
    assert found.low > 180


def test_runs_of_bad_arrivals_widen_the_interval() -> None:
    even = [sample(rate, share) for rate, share in ((80, 0.01), (100, 0.05), (120, 0.2))]
    runs = [sample(80, 0.09, *[0] * 8), sample(100, 0.45, *[0] * 8), sample(120, 0.9, 0.9, *[0] * 7)]
    smooth, rough = cross(*even), cross(*runs)
    assert rough.run_s > smooth.run_s
    assert rough.high / rough.low > smooth.high / smooth.low
    assert cross(*runs, correlated=False).high < rough.high


def test_nothing_to_cross_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        cross()


@st.composite
def anything(draw: st.DrawFn) -> list[Sample]:
    rates = draw(st.lists(st.floats(0.5, 5000), min_size=1, max_size=8))
    shares = st.lists(st.floats(0, 1), min_size=1, max_size=9)
    return [s for rate in rates if (s := sample(rate, *draw(shares))).offered]


@given(anything().filter(bool))
@settings(max_examples=60, deadline=None)
def test_whatever_was_seen_the_quantiles_are_in_order(samples: list[Sample]) -> None:
    found = cross(*samples)
    rates = [s.rate for s in samples]
    assert min(rates) / 2.01 <= found.low <= found.quarter <= found.middle
    assert found.middle <= found.three_quarters <= found.high <= max(rates) * 1.51
    assert 0 <= found.floor <= 0.05
