"""Freshness of a replay position for a token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.database.replicas.freshness import (
    Freshness,
    ReplayPosition,
    can_wait,
    freshness,
    is_pinned,
    poll_intervals,
    visible_position,
)
from tenfold.positions import SEGMENT_BYTES, Token, normalize_position

UNKNOWN, FRESH, BEHIND, FOREIGN = Freshness.UNKNOWN, Freshness.FRESH, Freshness.BEHIND, Freshness.FOREIGN
NUMBERS = st.integers(0, 5)


def token(position: int = 50, *, timeline: int = 2, system: int = 7) -> Token:
    return Token(system, timeline, position, 2**31)


@pytest.mark.parametrize(
    ("held", "replayed", "before", "after"),
    [
        (None, None, FRESH, FRESH),
        (None, ReplayPosition(7, 1, 0), FRESH, FRESH),
        (token(), None, UNKNOWN, UNKNOWN),
        (token(), ReplayPosition(7, 2, 50), FRESH, FRESH),
        (token(), ReplayPosition(7, 2, 49), UNKNOWN, BEHIND),
        (
            token(),
            ReplayPosition(7, 1, 99),
            UNKNOWN,
            BEHIND,
        ),  # beyond the fork on the old timeline
        (token(), ReplayPosition(7, 3, 10), FOREIGN, FOREIGN),
        (
            token(),
            ReplayPosition(7, 3, 99),
            FOREIGN,
            FOREIGN,
        ),  # 50 of timeline 2 may be lost
        (token(), ReplayPosition(8, 2, 99), FOREIGN, FOREIGN),
        (token(), ReplayPosition(8, 1, 99), FOREIGN, FOREIGN),
    ],
)
def test_freshness_of_a_replay_position(
    held: Token | None, replayed: ReplayPosition | None, before: Freshness, after: Freshness
) -> None:
    assert freshness(held, replayed) is before
    assert freshness(held, replayed, asked=True) is after


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.booleans())
def test_fresh_means_the_same_timeline_replayed_up_to_the_token(
    s: int, t: int, p: int, u: int, v: int, q: int, asked: bool
):
    found = freshness(Token(s, t, p, 0), ReplayPosition(u, v, q), asked=asked)
    assert (found is FRESH) == (s == u and t == v and q >= p)
    if asked:
        assert found is not UNKNOWN


@given(st.integers(0, 2**40), st.integers(0, 2**20))
def test_received_log_beyond_the_replayed_one_may_be_visible(replayed: int, more: int) -> None:
    found = visible_position(replayed, replayed + more, segment_bytes=SEGMENT_BYTES)
    assert found == (replayed + 1 if more else normalize_position(replayed))


def test_without_received_log_the_replayed_position_is_visible() -> None:
    assert visible_position(100, None, segment_bytes=SEGMENT_BYTES) == 100
    assert visible_position(100, 50, segment_bytes=SEGMENT_BYTES) == 100


@pytest.mark.parametrize(
    ("version", "replayed", "can"),
    [
        (190000, ReplayPosition(7, 2, 10), True),
        (180004, ReplayPosition(7, 2, 10), False),
        (0, ReplayPosition(7, 2, 10), False),  # another driver, which does not say
        (190000, None, False),
        (190000, ReplayPosition(7, 1, 99), False),  # it would answer at once, whatever the number means there
        (190000, ReplayPosition(8, 2, 10), False),
    ],
)
def test_servers_that_can_wait(version: int, replayed: ReplayPosition | None, can: bool) -> None:
    assert can_wait(token(), replayed, version=version) is can


@pytest.mark.parametrize(("age_s", "pin"), [(0, True), (4.9, True), (5.1, False), (-3, True)])
def test_a_pin_holds_for_a_while(age_s: float, pin: bool) -> None:
    written = Token(0, 0, 1_000_000, 0)
    assert is_pinned(written, now=1000 + age_s, pin_s=5) is pin
    assert not is_pinned(None, now=1000, pin_s=5)


@given(st.floats(0, 5))
def test_poll_intervals_add_up_to_the_longest_wait(wait_s: float) -> None:
    assert sum(poll_intervals(wait_s)) == pytest.approx(wait_s, abs=1e-6)
    assert all(0 < pause <= 0.008 for pause in poll_intervals(wait_s))
