"""From users to numbers: the formulas, what they rest on, and what breaks first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tenfold.sizing.settings import RegionSettings, SizingSettings
from tenfold.sizing.size import Measured, limits_on_the_way, size

SIZING = SizingSettings(
    active_share=0.1, think_s=10, peak_factor=2, database_cpu_ms=4, write_share=0.25, database_cores=10
)
MEASURED = Measured(instance_rps=50, connections=10, reserve=10, max_connections=500, least=2, most=100)


def values(users: int, sizing: SizingSettings = SIZING, measured: Measured = MEASURED) -> dict[str, float]:
    return {one.name: one.value for one in size(users, sizing, measured)}


def test_formulas() -> None:
    found = values(100_000)
    assert found["request rate"] == pytest.approx(2000)  # 100,000 × 10 % / 10 s × 2
    assert found["instances"] == 40
    assert found["workers"] == 32  # 2000/s × 5 % × 0.5 s / (2 at once × 80 %)
    assert found["connections"] == (40 + 10) * 10 + 32 * 2 + 10
    assert found["database CPU"] == pytest.approx(8.0)
    # The primary has 7 cores for 2 of writes and 5 of reads; the other read core takes a replica.
    assert found["database servers"] == 2
    assert found["Redis"] == pytest.approx(100_000 * 0.3 * 2 / 1024 + 256)
    assert values(100)["instances"] == 2


def test_edge_takes_requests_away_and_shortens_the_way() -> None:
    regions = {"sa-east": RegionSettings(share=0.1, rtt_ms=190)}
    sizing = SIZING.model_copy(update={"edge_share": 0.75, "regions": regions})
    found = values(100_000, sizing)
    assert found["to the app"] == pytest.approx(500)
    assert found["instances"] == 10
    assert found["latency, sa-east"] == pytest.approx(0.75 * 20 + 0.25 * 190)


def test_costs_are_the_sum_of_their_parts() -> None:
    sizing = SIZING.model_copy(update={"database_price": 1.0, "busy_hours": 12})
    found = values(100_000, sizing, replace(MEASURED, instance_price=0.1))
    assert found["cost a month"] == pytest.approx((40 * 0.5 * 0.1 + 2 * 1.0) * 730)
    assert "cost a month" not in values(100_000)


def test_every_number_says_what_it_rests_on() -> None:
    bases = {one.name: one.basis for one in size(1000, SIZING, MEASURED)}
    assert bases["request rate"] == bases["database CPU"] == "set"
    assert bases["instances"] == "measured"
    assert bases["Redis"] == "assumed"
    unset = {
        one.name: one.basis for one in size(1000, SizingSettings(), replace(MEASURED, database_cpu_ms=3))
    }
    assert (unset["request rate"], unset["database CPU"]) == ("assumed", "measured")


def test_what_breaks_first() -> None:
    found = limits_on_the_way(SIZING, MEASURED, to=10_000_000)
    assert [limit.users for limit in found] == sorted(limit.users for limit in found)
    assert len(found) == 5
    by_what = {limit.what: limit.users for limit in found}
    assert by_what["the scaler's minimum of 2 is full"] == 5001  # 100/s and one more
    assert by_what["one database server of 10 cores is full"] == 87_501
    assert by_what["the primary is full of writes"] == 350_001
    assert limits_on_the_way(SIZING, MEASURED, to=5000) == []


@given(
    users=st.integers(100, 10**8),
    more=st.integers(1, 10**6),
    edge=st.floats(0, 0.99),
    write=st.floats(0.01, 1),
)
def test_more_users_never_need_less(users: int, more: int, edge: float, write: float) -> None:
    sizing = SIZING.model_copy(update={"edge_share": edge, "write_share": write})
    fewer, larger = values(users, sizing), values(users + more, sizing)
    assert all(fewer[name] <= larger[name] + 1e-9 for name in fewer)


@given(users=st.integers(100, 10**7))
def test_a_limit_holds_from_its_number_of_users_on(users: int) -> None:
    limit = next(one for one in limits_on_the_way(SIZING, MEASURED, to=10**9) if "connections" in one.what)
    assert (values(users)["connections"] > 500) == (users >= limit.users)


def test_regions_of_more_than_all_users_are_refused() -> None:
    far = {"share": 0.6, "rtt_ms": 100}
    with pytest.raises(ValidationError, match="more than all users"):
        SizingSettings.model_validate({"regions": {"a": far, "b": far}})
