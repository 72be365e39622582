"""The lab of planted causes, in part: `python -m benchmarks.diagnosis` measures all of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.measure.lab.lab import LAB, Planted, judge, run

QUICK = ("blocking_sleep", "row_lock")  # of few requests per second
SLOW = (
    *("held_async", "over_fetching", "plain_cpu", "n_plus_one", "row_lock_idle"),
    *("second_connection", "two_held", "flask_threads", "healthy_cpu"),
)
BY_NAME = {one.name: one for one in LAB}


def check(name: str, *, budget_s: float) -> None:
    report = run(BY_NAME[name], seed=5, budget_s=budget_s)
    found = judge(BY_NAME[name], report)
    said = (report.get("limit"), report.get("bottlenecks"), report.get("error"))
    assert (found.first, found.line, found.false_alarms) == (True, True, ()), said


@pytest.mark.guarantee(
    "the cause of a service's limit is named first, with its line",
    pattern="measure",
    under="planted causes, measured on a real stack",
    control="the healthy service of the same lab",
)
@pytest.mark.parametrize("name", QUICK)
def test_planted_cause_is_named_first_with_its_line(name: str) -> None:
    check(name, budget_s=12.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_planted_causes_are_named_and_no_false_ones(name: str) -> None:
    check(name, budget_s=30.0)


def test_every_cause_has_its_line_marked_and_a_seed_its_strength() -> None:
    assert len(LAB) >= 18
    assert len({one.name for one in LAB}) == len(LAB)
    assert sum(not one.causes for one in LAB) >= 3
    for one in LAB:
        assert bool(one.planted_lines()) == (bool(one.causes) and one.lines), one.name
        assert one.settings(1) == one.settings(1)


PLANTED = Planted("lock", "fastapi_async:app", ("lock",))


def report(*causes: tuple[str, str | None]) -> dict[str, Any]:
    return {"bottlenecks": [{"cause": cause, "where": where} for cause, where in causes]}


@pytest.mark.parametrize(
    ("causes", "first", "line", "alarms"),
    [
        ([("lock", None)], True, False, ()),
        ([("plain_cpu", "app.py:1"), ("lock", "there")], False, True, ("plain_cpu",)),
        ([], False, False, ()),
        ([("lock", "there"), ("no_recovery", None)], True, True, ()),
    ],
)
def test_judgement(
    causes: list[tuple[str, str | None]], first: bool, line: bool, alarms: tuple[str, ...]
) -> None:
    there = PLANTED.planted_lines()[0]
    told = [(cause, there if where == "there" else where) for cause, where in causes]
    found = judge(PLANTED, report(*told))
    assert (found.first, found.line, found.false_alarms) == (first, line, alarms)


def test_cause_of_a_healthy_service_is_a_false_alarm() -> None:
    found = judge(BY_NAME["healthy_cpu"], report(("plain_cpu", "app.py:1")))
    assert (found.first, found.false_alarms) == (False, ("plain_cpu",))
