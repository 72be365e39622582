"""The checks of metrics on a real stack, and what they make of numbers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tenfold.types import Verdict
from tenfold.verify import CHECKS, run, select
from tenfold.verify.monitoring.counters import judge_cost, judge_counts
from tests.verify.support import metered


def test_checks_pass_on_a_correct_service(tmp_path: Path) -> None:
    with ExitStack() as ending:
        stack, settings = metered.start("careful")(tmp_path, ending)
        found = {
            outcome.check.name: outcome.finding
            for outcome in run(select(CHECKS, ["monitoring"]), stack, settings)
        }
    assert [finding for finding in found.values() if finding.verdict is not Verdict.PASS] == []
    assert int(found["every request is counted"].numbers["sent"]) > 50


@pytest.mark.parametrize(
    ("sent", "counted", "verdict", "says"),
    [
        ({"a": 10, "b": 9}, {"a": 10.0, "b": 9.0}, Verdict.PASS, "19 requests in nginx's log"),
        ({"a": 0}, {"a": 0.0}, Verdict.SKIP, "no request reached"),
        ({"a": 10}, {"a": 0.0}, Verdict.FAIL, "none of 10 requests"),
        ({"a": 10, "b": 9}, {"a": 10.0, "b": 4.0}, Verdict.FAIL, "b got 9 requests and counted 4"),
        ({"a": 10}, {"a": 20.0}, Verdict.FAIL, "a got 10 requests and counted 20"),
    ],
)
def test_counts_are_judged(
    sent: dict[str, int], counted: dict[str, float], verdict: Verdict, says: str
) -> None:
    finding = judge_counts(sent, counted)
    assert (finding.verdict, says in finding.claim) == (verdict, True), finding


def test_cost_is_judged() -> None:
    assert judge_cost(0.29, 50_000).verdict is Verdict.PASS
    assert judge_cost(0.31, 50_000).verdict is Verdict.FAIL
