from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.load.schedule import apportion, arrival_shares, draw_classes, poisson

rates = st.floats(0.5, 2000)
seeds = st.integers(0, 2**32)


@given(rate=rates, duration_s=st.floats(0.1, 5), seed=seeds)
def test_due_times_are_sorted_inside_the_trial_and_reproducible(
    rate: float, duration_s: float, seed: int
) -> None:
    due = poisson(rate=rate, duration_s=duration_s, seed=seed)
    assert list(due) == sorted(due)
    assert all(0 <= at < duration_s for at in due)
    assert due == poisson(rate=rate, duration_s=duration_s, seed=seed)


def test_another_seed_gives_another_schedule() -> None:
    assert poisson(rate=100, duration_s=1, seed=1) != poisson(rate=100, duration_s=1, seed=2)


def test_same_seed_at_another_rate_stretches_the_same_gaps() -> None:
    slow, fast = (poisson(rate=rate, duration_s=10, seed=7) for rate in (50, 100))
    assert fast[10] == pytest.approx(slow[10] / 2)


def test_gaps_are_exponential() -> None:
    rate = 500.0
    due = poisson(rate=rate, duration_s=200, seed=3)
    gaps = sorted(after - before for before, after in pairwise(due))
    assert len(due) == pytest.approx(rate * 200, rel=0.02)
    # Kolmogorov-Smirnov distance; at 100,000 gaps the 0.1 % limit is 1.95/sqrt(n) = 0.0062.
    distance = max(abs((i + 1) / len(gaps) - (1 - math.exp(-rate * gap))) for i, gap in enumerate(gaps))
    assert distance < 0.0062
    # Negative control: evenly spaced arrivals are far from it.
    even = max(abs((i + 1) / 1000 - (1 - math.exp(-1.0))) for i in range(1000))
    assert even > 0.5


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"duration_s": 0}, {"rate": -1}, {"rate": math.nan}])
def test_rate_and_duration_must_be_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        poisson(**({"rate": 1, "duration_s": 1, "seed": 1} | wrong))


def test_number_of_arrivals_is_bounded() -> None:
    with pytest.raises(ValueError, match="more than"):
        poisson(rate=1e6, duration_s=60, seed=1)


def test_drawn_classes_follow_the_shares() -> None:
    drawn = draw_classes(20_000, shares=[3, 1, 0], seed=1)
    assert drawn.count(0) / 20_000 == pytest.approx(0.75, abs=0.02)
    assert drawn.count(2) == 0
    assert (
        drawn
        == draw_classes(20_000, shares=[3, 1, 0], seed=1)
        != draw_classes(20_000, shares=[3, 1, 0], seed=2)
    )


@given(
    users=st.integers(0, 500),
    classes=st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 5)), min_size=1, max_size=6),
)
def test_all_users_are_apportioned(users: int, classes: list[tuple[float, int]]) -> None:
    weights, fixed = [one[0] for one in classes], [one[1] for one in classes]
    counts = apportion(users, weights=weights, fixed=fixed)
    assert all(count >= 0 for count in counts)
    assert all(count <= number for count, number in zip(counts, fixed, strict=True) if number)
    wanted = users if 0 in fixed else min(users, sum(fixed))
    assert sum(counts) == wanted
    shares = arrival_shares(users, weights=weights, fixed=fixed)
    assert 0 not in fixed or sum(shares) >= 1 - 1e-9


@pytest.mark.parametrize(
    ("users", "weights", "fixed", "counts"),
    [
        (10, [3, 1], [0, 0], [8, 2]),
        (4, [3, 1], [0, 0], [3, 1]),
        (10, [1, 1], [1, 0], [1, 9]),
        (1, [1, 1], [2, 0], [1, 0]),
        (0, [1], [0], [0]),
    ],
)
def test_apportion(users: int, weights: list[float], fixed: list[int], counts: list[int]) -> None:
    assert apportion(users, weights=weights, fixed=fixed) == counts


def test_fixed_count_class_gets_its_part_of_all_users() -> None:
    assert arrival_shares(50, weights=[1, 3, 1], fixed=[1, 0, 0]) == pytest.approx([0.02, 0.735, 0.245])
