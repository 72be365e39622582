"""The connection budget: the arithmetic and its messages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.database.pools.budget import Fleet, ServerLimits, check_budget, lifetime_s
from tenfold.types import Verdict


@pytest.mark.guarantee(
    "a fleet that exceeds the server's limits is reported, with numbers that fit",
    pattern="pools",
    under="any fleet; limits of the role",
    control="the same tests: fleets that fit",
)
@pytest.mark.parametrize(
    ("fleet", "limits", "needed", "verdict"),
    [
        (Fleet(), ServerLimits(), 40, Verdict.PASS),
        (Fleet(hosts=3, reserve=7), ServerLimits(), 97, Verdict.PASS),
        (Fleet(hosts=3, reserve=8), ServerLimits(), 98, Verdict.FAIL),
        (Fleet(hosts=3, reserve=8), ServerLimits(max_connections=101), 98, Verdict.PASS),
        (Fleet(hosts=4, workers=8, engines=2), ServerLimits(max_connections=500), 1930, Verdict.FAIL),
        (Fleet(), ServerLimits(max_connections=500, limit=39), 40, Verdict.FAIL),
        (Fleet(), ServerLimits(max_connections=20, limit=500), 40, Verdict.FAIL),
    ],
)
def test_budget_of_a_fleet(fleet: Fleet, limits: ServerLimits, needed: int, verdict: Verdict) -> None:
    finding = check_budget(fleet, limits)
    assert (finding.numbers["needed"], finding.verdict) == (needed, verdict)
    assert bool(finding.remedy) == (verdict is Verdict.FAIL)


def test_finding_has_the_numbers_and_the_remedy() -> None:
    finding = check_budget(Fleet(hosts=2, workers=4, engines=1), ServerLimits())
    assert f"{finding.claim}: {finding.remedy}" == (
        "hosts 2 × workers 4 × engines 1 × (20 + 10) + reserve 10 = 250 connections, and the server allows "
        "97 (max_connections 100 − 3 for superusers): set pool_size to 6 and max_overflow to 4, put "
        "PgBouncer in front of the server, or raise max_connections to 253 if it has memory for them"
    )
    assert "CONNECTION LIMIT" in check_budget(Fleet(), ServerLimits(limit=5)).claim
    assert "not even one" in check_budget(Fleet(hosts=100), ServerLimits()).remedy


fleets = st.builds(
    Fleet,
    hosts=st.integers(1, 50),
    workers=st.integers(1, 16),
    engines=st.integers(1, 4),
    pool_size=st.integers(1, 50),
    max_overflow=st.integers(0, 50),
    reserve=st.integers(0, 50),
)


@pytest.mark.guarantee("a fleet that exceeds the server's limits is reported, with numbers that fit")
@given(fleets, st.builds(ServerLimits, max_connections=st.integers(1, 5000), reserved=st.integers(0, 20)))
def test_the_numbers_of_the_remedy_fit(fleet: Fleet, limits: ServerLimits) -> None:
    remedy = check_budget(fleet, limits).remedy
    if "set pool_size to" in remedy:
        words = remedy.replace(",", " ").split()
        size, overflow = int(words[3]), int(words[7])
        better = Fleet(fleet.hosts, fleet.workers, fleet.engines, size, overflow, fleet.reserve)
        assert check_budget(better, limits).verdict is Verdict.PASS
        assert size >= 1


@given(st.floats(1.6e9, 2.4e9), st.floats(60, 86_400))
def test_lifetime_is_80_to_100_percent_of_recycle_s(born: float, recycle_s: float) -> None:
    assert 0.8 * recycle_s <= lifetime_s(recycle_s, born=born) <= recycle_s


def test_connections_that_were_opened_together_do_not_end_together() -> None:
    ends = sorted(born + lifetime_s(3600, born=born) for born in (1.7e9 + n * 0.000_37 for n in range(100)))
    assert max(later - sooner for sooner, later in pairwise(ends)) < 3600 * 0.2 / 5
    assert ends[-1] - ends[0] > 3600 * 0.15
