"""The checks of the measurement, each with tests in which it must fail."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tenfold.measure.settings import MeasureSettings, Objective
from tenfold.settings import Settings
from tenfold.types import Verdict
from tenfold.verify.measure.baseline import (
    BASELINES,
    check_baseline,
    check_percentiles,
    judge_slow_queries,
)
from tests.measure.support.report_examples import report

OBJECTIVE = {"slow_ms": 200.0, "bad_share": 0.05, "achieved_share": 0.98}
GOOD = msgspec.to_builtins(report(samples=4000))
STACK: Any = None  # these checks read what was stored


def store(folder: Path, name: str = "main", *, age_s: float = 0, **changed: Any) -> None:
    (folder / BASELINES).mkdir(parents=True, exist_ok=True)
    file = folder / BASELINES / f"{name}.json"
    file.write_text(json.dumps(GOOD | changed))
    os.utime(file, (1e9 - age_s, 1e9 - age_s))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def interval(low: float | None, high: float | None) -> dict[str, Any]:
    return {"capacity": GOOD["capacity"] | {"low": low, "high": high}}


def test_baseline_for_this_objective_passes(folder: Path) -> None:
    store(folder)
    finding = check_baseline(STACK, Settings(root=folder))
    assert (finding.verdict, finding.claim) == (Verdict.PASS, "main: 56 – 61 arrivals/s")
    assert finding.numbers == {"low": 56, "high": 61}


@pytest.mark.parametrize(
    ("changed", "claim"),
    [
        ({"capacity": None}, "the newest baseline has no capacity interval"),
        (interval(56.0, None), "the newest baseline has no capacity interval"),
        (interval(None, None), "the newest baseline has no capacity interval"),
        (interval(0.0, 0.0), "the newest baseline has no capacity: its interval is 0 – 0"),
        (interval(9.0, 3.0), "the newest baseline has no capacity: its interval is 9 – 3"),
        (interval(True, 3.0), "Expected `float | null`, got `bool` - at `$.capacity.low`"),
        (interval(float("nan"), 3.0), "JSON is malformed"),
        ({"objective": None}, "Expected `object`, got `null` - at `$.objective`"),
        (
            {"objective": OBJECTIVE | {"slow_ms": 500}},
            "the newest baseline was measured for slow_ms = 500, and it is 200 now",
        ),
    ],
)
def test_unusable_baseline_fails(folder: Path, changed: dict[str, Any], claim: str) -> None:
    store(folder, **changed)
    finding = check_baseline(STACK, Settings(root=folder))
    assert finding.verdict is Verdict.FAIL
    assert claim in finding.claim
    assert finding.remedy


@pytest.mark.parametrize("check", [check_baseline, check_percentiles])
def test_missing_baseline_is_skipped(folder: Path, check: Any) -> None:
    for _ in range(2):
        finding = check(STACK, Settings(root=folder))
        assert (finding.verdict, finding.claim) == (Verdict.SKIP, "no baseline is stored")
        (folder / BASELINES).mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("check", [check_baseline, check_percentiles])
@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b"{}"])
def test_unreadable_baseline_fails(folder: Path, check: Any, text: bytes) -> None:
    (folder / BASELINES).mkdir(parents=True)
    (folder / BASELINES / "main.json").write_bytes(text)
    finding = check(STACK, Settings(root=folder))
    assert finding.verdict is Verdict.FAIL
    assert "main.json is not a tenfold report" in finding.claim


def test_the_newest_baseline_counts(folder: Path) -> None:
    store(folder, "old", age_s=60)
    store(folder, "new", objective=OBJECTIVE | {"slow_ms": 100.0})
    assert check_baseline(STACK, Settings(root=folder)).verdict is Verdict.FAIL
    strict = Settings(root=folder, measure=MeasureSettings(objective=Objective(slow_ms=100)))
    assert check_baseline(STACK, strict).verdict is Verdict.PASS


def test_percentiles_of_enough_arrivals_pass(folder: Path) -> None:
    store(folder)
    finding = check_percentiles(STACK, Settings(root=folder))
    assert (finding.verdict, finding.claim) == (Verdict.PASS, "main: p50 34 ms p95 176 ms p99 251 ms")


@pytest.mark.parametrize(
    ("changed", "claim"),
    [
        ({"samples": 999}, "p99 comes from 999 requests; it takes 1000"),
        ({"latency_ms": None}, "the newest baseline has no percentiles"),
        (
            {"latency_ms": {"p50": 34.0, "p95": 300.0, "p99": 251.0}},
            "the newest baseline has percentiles that fall: its histogram is broken",
        ),
        ({"latency_ms": {"p50": 34.0, "p95": 176.0}}, "missing required field `p99` - at `$.latency_ms`"),
    ],
)
def test_missing_or_unreliable_percentiles_fail(folder: Path, changed: dict[str, Any], claim: str) -> None:
    store(folder, **changed)
    finding = check_percentiles(STACK, Settings(root=folder))
    assert finding.verdict is Verdict.FAIL
    assert claim in finding.claim


# ------------------------------------------------------------------ slow queries


@dataclass
class FakeStatementUse:
    mean_ms: float
    fingerprint: str = "SELECT 1"
    site: str = "shop/orders.py:48"
    route: str = "GET /api/orders"
    executions: int = 10


@dataclass
class FakeEvidence:
    statements: list[FakeStatementUse] = field(default_factory=list)
    requests: int = 100
    seen: dict[str, bool] = field(default_factory=lambda: {"statements": True})


def test_fast_statements_pass() -> None:
    finding = judge_slow_queries(FakeEvidence([FakeStatementUse(100.0), FakeStatementUse(3.0)]))
    assert (finding.verdict, finding.claim) == (Verdict.PASS, "none of 2 statements takes more than 100 ms")


def test_slow_statement_fails_with_its_line() -> None:
    long = "SELECT *\n FROM orders WHERE " + "x = 1 AND " * 30
    finding = judge_slow_queries(
        FakeEvidence([FakeStatementUse(1.0), FakeStatementUse(100.1, long), FakeStatementUse(400, site="")])
    )
    assert finding.verdict is Verdict.FAIL
    assert finding.claim.startswith(
        "400 ms at GET /api/orders: SELECT 1; 100 ms at shop/orders.py:48: SELECT * FROM"
    )
    assert len(finding.claim) < 200
    assert finding.numbers["slow"] == 2


def test_many_slow_statements_are_counted() -> None:
    finding = judge_slow_queries(FakeEvidence([FakeStatementUse(200.0 + number) for number in range(9)]))
    assert finding.claim.count("ms at") == 3
    assert finding.claim.endswith("; and 6 more")


def test_missing_evidence_is_no_pass() -> None:
    assert judge_slow_queries(FakeEvidence(requests=0)).verdict is Verdict.FAIL
    assert judge_slow_queries(FakeEvidence(seen={"requests": True})).verdict is Verdict.SKIP
