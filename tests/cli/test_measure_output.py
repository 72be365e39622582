"""Output of `tenfold measure`: 80 columns, and an exit code that follows from the interval."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.cli.bar import Bar, status
from tenfold.cli.measure import _baseline, exit_code
from tenfold.cli.report_text import report_lines
from tenfold.errors import SettingsError
from tenfold.measure.measurement import Progress
from tenfold.settings import Settings
from tests.measure.support.report_examples import capacity, report


@pytest.mark.parametrize(
    ("changes", "min_rps", "code"),
    [
        ({}, None, 0),
        ({}, 50, 0),
        ({}, 56, 0),
        ({}, 58, 2),
        ({}, 61, 2),
        ({}, 62, 1),
        ({"low": 56.0, "high": None, "outcome": "at_least"}, 50, 0),
        ({"low": 56.0, "high": None, "outcome": "at_least"}, 80, 2),
        ({"low": None, "high": None, "outcome": "undecided"}, None, 2),
        ({"low": None, "high": None, "outcome": "below"}, None, 1),
        ({"requests_per_arrival": 2.0}, 110, 0),
        ({"requests_per_arrival": 2.0}, 130, 1),
    ],
)
def test_exit_code_follows_from_the_interval(
    changes: dict[str, Any], min_rps: float | None, code: int
) -> None:
    assert exit_code(report(capacity=capacity(**changes)), min_rps) == code


def test_exit_code_of_a_closed_loop() -> None:
    closed = report(mode="closed", capacity=None)
    assert exit_code(closed, None) == 0 and exit_code(closed, 10) == 2


def test_interrupted_measurement_exits_with_2() -> None:
    assert exit_code(report(interrupted=True), None) == 2


def test_report_text_fits_80_columns() -> None:
    text = list(report_lines(report()))
    assert all(len(line) <= 80 for line in text)
    whole = "\n".join(text)
    for part in ("56.0 – 61.0 requests/s", "95 % interval, 88 s", "p95 176 ms", "recovers in 7.0 s"):
        assert part in whole
    for part in (
        "shop/naive/orders.py:48",
        "What stops it: the connection pool, full 83 % of the time (2 connections)",
        "connections are held by requests that compute ← requests wait for a connection",
        "71 % of it, suspected",
        "waiting for a connection                                  0 ms         81.7 ms",
        "Also: missing index on orders (user_id)",
        "→ load the items",
        "Not measured: Disk",
    ):
        assert part in whole


def test_limit_without_a_cause_has_its_remedy() -> None:
    whole = "\n".join(report_lines(report(bottlenecks=())))
    assert "→ hold connections for less time" in whole
    assert "→ hold connections" not in "\n".join(report_lines(report()))


@pytest.mark.parametrize("outcome", ["at_least", "below", "undecided"])
def test_report_without_interval_has_a_reason(outcome: str) -> None:
    one = report(capacity=capacity(outcome=outcome, low=9.0, high=None, reason="limited by the generator"))
    assert "limited by the generator" in "\n".join(report_lines(one))


def test_long_texts_wrap_and_statements_do_not() -> None:
    statement = "CREATE INDEX CONCURRENTLY ON order_items (order_id)"
    one = report(
        notices=("many words " * 30,),
        errors={"an error that goes on and on " * 9: 3},
        bottlenecks=(replace(report().bottlenecks[0], remedy=statement, evidence=("e " * 90,)),),
    )
    text = list(report_lines(one))
    assert all(len(line) <= 80 for line in text)
    assert any(statement in line for line in text)


RATES = st.floats(0.5, 50_000)


@given(
    st.sampled_from(["warm-up", "ramp", "search", "confirm", "overload", "recovery", "diagnosing"]),
    RATES,
    st.floats(0, 400),
    st.floats(10, 3600),
    st.lists(st.tuples(RATES, st.sampled_from(["passed", "failed", "undecided"])), max_size=40),
)
def test_the_status_never_leaves_its_line(
    phase: str, rate: float, elapsed_s: float, budget_s: float, verdicts: list[tuple[float, str]]
) -> None:
    for width in (55, 80):
        line = status(Progress(phase, rate, elapsed_s, budget_s, tuple(verdicts)), width=width)
        assert len(line) <= width and "\n" not in line


SEARCH = Progress("search", 40.0, 1.0, 90.0, ((20.0, "passed"), (80.0, "failed")))


def test_status_has_the_phase_the_rates_and_the_time() -> None:
    assert status(SEARCH, width=55) == "bisecting   20 ✔  80 ✘  40 …                  1 of 90 s"


def test_a_log_has_a_line_for_each_phase_and_one_every_ten_seconds() -> None:
    stream = io.StringIO()
    with Bar(stream) as bar:
        for elapsed in range(25):
            bar.show(replace(SEARCH, rate=40.0 + elapsed, elapsed_s=float(elapsed)))
        bar.show(replace(SEARCH, phase="confirm", elapsed_s=25.0))
    lines_ = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines_] == ["bisecting"] * 3 + ["confirming"]
    assert "\x1b" not in stream.getvalue() and "40 …" in lines_[0] and "50 …" in lines_[1]


def test_a_log_names_a_step_once() -> None:
    stream = io.StringIO()
    with Bar(stream) as bar:
        bar.step("starting the stack")
        bar.step("starting the stack: PostgreSQL")
        bar.done("stack", "PostgreSQL 18.4", 2.04)
        bar.step("logging 10 users in")
    lines_ = stream.getvalue().splitlines()
    assert lines_ == ["starting the stack", f"✔ {'stack   PostgreSQL 18.4':<73}2.0 s", "logging 10 users in"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_terminal_has_one_line_that_is_redrawn(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.delenv("CI", raising=False)
    stream = Terminal()
    with Bar(stream) as bar:
        bar.step("starting the stack")
        for elapsed in range(100):
            bar.show(replace(SEARCH, elapsed_s=float(elapsed)))
        bar._display.refresh()
        bar.say("Measuring shop")
    text = stream.getvalue()
    # Two lines stay or are left: what was said, and the last one that was redrawn, which is then erased.
    assert "bisecting" in text and "\x1b[2K" in text and text.count("\n") <= 3


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x;y"])
def test_baseline_name_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(SettingsError, match="is not a name for a baseline"):
        _baseline(Settings(), name)


def test_baseline_is_stored_beside_the_settings(tmp_path: Path) -> None:
    path = _baseline(Settings(root=tmp_path), "before-index_1.2")
    assert path == tmp_path / ".tenfold" / "baselines" / "before-index_1.2.json"
