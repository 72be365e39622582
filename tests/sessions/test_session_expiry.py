"""Expiry and refresh, as tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.sessions import record


@pytest.mark.parametrize(
    ("now", "last_seen", "due"),
    [(0, 0, False), (9.9, 0, False), (10, 0, True), (1000, 0, True), (-9, 0, False), (-10, 0, True)],
)
def test_refresh_is_due_after_a_tenth_of_the_idle_time(now: float, last_seen: float, due: bool) -> None:
    assert record.is_refresh_due(now, last_seen, 100) is due


@pytest.mark.parametrize(("now", "expired"), [(99.9, False), (100, True), (1e9, True)])
def test_absolute_and_idle_expiry(now: float, expired: bool) -> None:
    assert record.is_expired(now, 100) is expired
    assert record.is_idle(now, 0, 100) is expired


@given(st.floats(0, 1e10), st.floats(0, 1e10), st.floats(0.001, 1e7))
def test_store_lifetime_is_positive_and_bounded_by_both_limits(
    now: float, ends: float, idle_s: float
) -> None:
    lifetime_s = record.store_ttl_s(now, ends, idle_s)
    assert 0 < lifetime_s <= idle_s
    assert lifetime_s <= max(0.001, ends - now)
