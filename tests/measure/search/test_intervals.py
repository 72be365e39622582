"""Limits of a counted share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.search.sequential import share_limits


@pytest.mark.parametrize(
    ("bad", "offered", "low", "high"),
    [  # tables of Clopper and Pearson
        (0, 10, 0.0, 0.3085),
        (10, 10, 0.6915, 1.0),
        (5, 100, 0.0164, 0.1128),
        (1, 20, 0.0013, 0.2487),
        (0, 72, 0.0, 0.0499),
        (0, 0, 0.0, 1.0),
    ],
)
def test_limits_equal_the_published_tables(bad: int, offered: int, low: float, high: float) -> None:
    assert share_limits(bad, offered) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(1, 50))
def test_counts_divided_by_the_inflation_give_wider_limits(counts: tuple[int, int], by: float) -> None:
    bad, offered = counts
    low, high = share_limits(bad, offered)
    wide_low, wide_high = share_limits(bad / by, offered / by)
    assert wide_low <= low + 1e-9 <= bad / offered + 2e-9
    assert bad / offered <= high + 1e-9 <= wide_high + 2e-9


@pytest.mark.parametrize("counts", [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no share"):
        share_limits(*counts)
