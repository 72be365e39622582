"""Lag of a replica, and the limits within which it may serve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.database.replicas.servers import HealthLimits, Lag, PrimaryHistory, may_serve

LIMITS = HealthLimits(max_lag_bytes=1000, max_lag_s=10)


def history(*samples: tuple[float, int], timeline: int = 1) -> PrimaryHistory:
    found = PrimaryHistory()
    for at, position in samples:
        found.add(at, timeline, position)
    return found


@pytest.mark.parametrize(
    ("replayed", "lag"),
    [
        (300, Lag()),
        (400, Lag()),  # heard of after the last sample
        (299, Lag(1, 1.0)),
        (200, Lag(100, 1.0)),
        (199, Lag(101, 2.0)),
        (0, Lag(300, 3.0)),
    ],
)
def test_lag_counts_from_the_first_missing_byte(replayed: int, lag: Lag) -> None:
    assert history((10, 100), (11, 200), (12, 300)).lag(1, replayed, now=13) == lag


def test_idle_primary_causes_no_lag() -> None:
    idle = history(*((at, 500) for at in range(1000)))
    assert idle.lag(1, 500, now=2000) == Lag()


def test_no_lag_before_the_first_sample() -> None:
    assert PrimaryHistory().lag(1, 0, now=5) == Lag()


def test_a_replica_that_did_not_follow_a_promotion_grows_late() -> None:
    found = history((10, 100))
    found.add(20, 2, 120)
    found.add(25, 2, 500)
    # It replayed beyond the fork on the old timeline: its position looks fine, its data are not.
    assert found.lag(1, 600, now=33) == Lag(0, 13)
    assert found.lag(2, 500, now=33) == Lag()
    assert found.lag(3, 0, now=33) == Lag()


@pytest.mark.parametrize(
    ("lag", "stays", "returns"),
    [
        (Lag(), True, True),
        (Lag(500, 5), True, True),
        (Lag(501, 0), True, False),
        (Lag(0, 6), True, False),
        (Lag(1001, 0), False, False),
        (Lag(0, 10.1), False, False),
    ],
)
def test_late_replica_returns_at_half_the_limit(lag: Lag, stays: bool, returns: bool) -> None:
    assert may_serve(lag, LIMITS, serving=True) is stays
    assert may_serve(lag, LIMITS, serving=False) is returns


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(0, 1000), st.integers(0, 1000))
def test_lag_never_grows_with_the_replayed_position(writes: list[int], one: int, other: int) -> None:
    samples, position = [], 0
    for at, written in enumerate(writes):
        position += written
        samples.append((float(at), position))
    found = history(*samples)
    more, less = (found.lag(1, replayed, now=50) for replayed in (max(one, other), min(one, other)))
    assert more.bytes <= less.bytes
    assert more.seconds <= less.seconds
