"""Whether a backend has seen what a visitor has seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.database.replicas.freshness import Place, Verdict, can_wait, judge, pauses, pinned, shown
from tenfold.positions import SEGMENT_BYTES, Token, normalised

NUMBERS = st.integers(0, 5)


def token(position: int = 50, *, timeline: int = 2, system: int = 7) -> Token:
    return Token(system, timeline, position, 2**31)


@pytest.mark.parametrize(
    ("held", "place", "before", "after"),
    [
        (None, None, Verdict.FRESH, Verdict.FRESH),
        (None, Place(7, 1, 0), Verdict.FRESH, Verdict.FRESH),
        (token(), None, Verdict.ASK, Verdict.ASK),
        (token(), Place(7, 2, 50), Verdict.FRESH, Verdict.FRESH),
        (token(), Place(7, 2, 49), Verdict.ASK, Verdict.BEHIND),
        (token(), Place(7, 1, 99), Verdict.ASK, Verdict.BEHIND),  # beyond the fork on the old timeline
        (token(), Place(7, 3, 10), Verdict.FOREIGN, Verdict.FOREIGN),
        (token(), Place(7, 3, 99), Verdict.FOREIGN, Verdict.FOREIGN),  # 50 of timeline 2 may be lost
        (token(), Place(8, 2, 99), Verdict.FOREIGN, Verdict.FOREIGN),
        (token(), Place(8, 1, 99), Verdict.FOREIGN, Verdict.FOREIGN),
    ],
)
def test_the_verdict(held: Token | None, place: Place | None, before: Verdict, after: Verdict) -> None:
    assert judge(held, place) is before
    assert judge(held, place, asked=True) is after


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.booleans())
def test_fresh_means_the_same_log_up_to_the_token(
    s: int, t: int, p: int, u: int, v: int, q: int, asked: bool
):
    verdict = judge(Token(s, t, p, 0), Place(u, v, q), asked=asked)
    assert (verdict is Verdict.FRESH) == (s == u and t == v and q >= p)
    if asked:
        assert verdict is not Verdict.ASK


@given(st.integers(0, 2**40), st.integers(0, 2**20))
def test_what_is_under_way_counts_as_shown(replayed: int, more: int) -> None:
    found = shown(replayed, replayed + more, segment_bytes=SEGMENT_BYTES)
    assert found == (replayed + 1 if more else normalised(replayed))


def test_a_replica_that_receives_nothing_shows_what_it_replayed() -> None:
    assert shown(100, None, segment_bytes=SEGMENT_BYTES) == 100
    assert shown(100, 50, segment_bytes=SEGMENT_BYTES) == 100


@pytest.mark.parametrize(
    ("version", "place", "can"),
    [
        (190000, Place(7, 2, 10), True),
        (180004, Place(7, 2, 10), False),
        (0, Place(7, 2, 10), False),  # another driver, which does not say
        (190000, None, False),
        (190000, Place(7, 1, 99), False),  # it would answer at once, whatever the number means there
        (190000, Place(8, 2, 10), False),
    ],
)
def test_who_can_be_told_to_wait(version: int, place: Place | None, can: bool) -> None:
    assert can_wait(token(), place, version=version) is can


@pytest.mark.parametrize(("age_s", "pin"), [(0, True), (4.9, True), (5.1, False), (-3, True)])
def test_a_pin_holds_for_a_while(age_s: float, pin: bool) -> None:
    written = Token(0, 0, 1_000_000, 0)
    assert pinned(written, now=1000 + age_s, pin_s=5) is pin
    assert not pinned(None, now=1000, pin_s=5)


@given(st.floats(0, 5))
def test_pauses_add_up_to_the_bound(wait_s: float) -> None:
    assert sum(pauses(wait_s)) == pytest.approx(wait_s, abs=1e-6)
    assert all(0 < pause <= 0.008 for pause in pauses(wait_s))
