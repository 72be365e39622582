"""Uneven load and its reason: from lines of the access log."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.balancing.skew import Attempt, Load, Reason, attempts, chi_squared, loads, skews

stats = pytest.importorskip("scipy.stats")
special = pytest.importorskip("scipy.special")

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


def row(node: str, seconds: float = 0.01, path: str = "/") -> dict[str, object]:
    return {
        "path": path,
        "upstream_addr": node,
        "upstream_status": "200",
        "upstream_response_time": f"{seconds:.3f}",
    }


def rows(counts: dict[str, int], seconds: dict[str, float] | None = None, *, seed: int = 1) -> list[dict]:
    """Requests for 50 paths, with times that vary by a half."""
    chance = random.Random(seed)
    return [
        row(node, (seconds or {}).get(node, 0.01) * chance.uniform(0.5, 1.5), f"/{chance.randrange(50)}")
        for node, count in counts.items()
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("addr", "status", "time", "expected"),
    [
        (A, "200", "0.012", [Attempt(A, "200", 0.012)]),
        (f"{A}, {B}", "502, 200", "0.001, 0.020", [Attempt(A, "502", 0.001), Attempt(B, "200", 0.02)]),
        (f"{A} : {B}", "302 : 200", "0.1 : 0.2", [Attempt(A, "302", 0.1), Attempt(B, "200", 0.2)]),
        (f"{A}, app", "502, 502", "-, 0.000", [Attempt(A, "502", None)]),
        ("", "", "", []),
        ("-", "-", "-", []),
        (A, "", "nan", [Attempt(A, "", None)]),
        (f"{A}, {B}", "504", "0.5", [Attempt(A, "504", 0.5), Attempt(B, "-", None)]),
    ],
)
def test_a_retry_is_two_attempts(addr: str, status: str, time: str, expected: list[Attempt]) -> None:
    line = {"upstream_addr": addr, "upstream_status": status, "upstream_response_time": time}
    assert list(attempts(line)) == expected


@given(
    st.dictionaries(
        st.sampled_from(["upstream_addr", "upstream_status", "upstream_response_time"]), st.text()
    )
)
def test_no_line_is_too_odd(line: dict[str, str]) -> None:
    for attempt in attempts(line):
        assert ":" in attempt.node


def test_what_a_node_did_is_added_up() -> None:
    found = loads([row(A, 0.1), row(A, 0.3), {**row(f"{A}, {B}"), "upstream_status": "502, 200"}], nodes=[C])
    assert (found[A].requests, found[A].failed, found[B].requests, found[C].requests) == (3, 1, 1, 0)
    assert found[A].busy_s == pytest.approx(0.41)


def test_even_load_is_no_news() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        counts = dict.fromkeys((A, B, C), 0)
        for _ in range(3000):
            counts[chance.choice((A, B, C))] += 1
        assert skews(loads(rows(counts, seed=seed))) == ()


def only(found: tuple) -> tuple[str, Reason]:
    (skew,) = found
    return skew.node, skew.reason


def test_a_slow_node_is_named_under_round_robin_and_under_least_conn() -> None:
    for counts in ({A: 500, B: 500, C: 500}, {A: 650, B: 650, C: 200}):
        assert only(skews(loads(rows(counts, {C: 0.04})))) == (C, Reason.SLOW_NODE)


def test_a_hot_key_is_named() -> None:
    lines = [*rows({A: 500, B: 500, C: 500}), *(row(B, path="/product/7") for _ in range(700))]
    (skew,) = skews(loads(lines))
    assert (skew.node, skew.reason) == (B, Reason.HOT_KEY)
    assert skew.numbers["key"] == "/product/7"
    assert skew.numbers["key_requests"] == 700
    assert "/product/7" in skew.claim


def test_without_a_hot_key_the_surplus_is_not_blamed_on_one() -> None:
    assert only(skews(loads(rows({A: 500, B: 1200, C: 500})))) == (B, Reason.UNKNOWN)


def test_a_weight_that_is_too_heavy_is_named() -> None:
    counts = {A: 900, B: 300, C: 300}
    assert only(skews(loads(rows(counts)), weights={A: 3})) == (A, Reason.WEIGHT)
    # The control: a machine that is three times as fast carries it.
    assert skews(loads(rows(counts, {A: 0.0035})), weights={A: 3}) != ()
    assert A not in {skew.node for skew in skews(loads(rows(counts, {A: 0.0035})), weights={A: 3})}


@pytest.mark.parametrize("counts", [{}, {A: 100}, {A: 3, B: 0}, {A: 0, B: 0}])
def test_too_little_says_nothing(counts: dict[str, int]) -> None:
    assert skews(loads(rows(counts), nodes=counts)) == ()


def test_keys_are_bounded() -> None:
    load = Load()
    for number in range(20_000):
        load.add(0.01, "/hot" if number % 3 == 0 else f"/{number}")
    assert len(load.keys) <= 1000
    assert load.keys.most_common(1)[0][0] == "/hot"


@given(st.lists(st.integers(0, 5000), min_size=2, max_size=12))
def test_chi_squared_is_scipys(counts: list[int]) -> None:
    if sum(counts) / len(counts) < 5:
        assert chi_squared(counts).p == 1
        return
    expected = stats.chisquare(counts)
    fit = chi_squared(counts)
    assert fit.statistic == pytest.approx(expected.statistic)
    assert fit.p == pytest.approx(expected.pvalue, abs=1e-12, rel=1e-6)


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(5, 400)), min_size=2, max_size=8))
def test_with_shares_of_any_size_too(cells: list[tuple[int, float]]) -> None:
    fit = chi_squared([count for count, _ in cells], [mean for _, mean in cells])
    assert fit.p == pytest.approx(special.chdtrc(len(cells) - 1, fit.statistic), abs=1e-12, rel=1e-6)
