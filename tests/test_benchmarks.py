"""The benchmarks' options, their results as table and JSON, and the order of their variants."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path

import pytest
from benchmarks.support.results import Result, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = sorted(file.stem for file in (ROOT / "benchmarks").glob("[a-z]*.py"))  # as in the Makefile


def run(name: str, *options: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# ------------------------------------------------------------------ options


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_answers_help_and_takes_json(name: str) -> None:
    usage, _, description = run(name, "--help").partition("\n\n")
    assert "[--json]" in usage
    assert re.search(rf"python -m benchmarks\.{name}\b.*\[--json\]", description)


def test_json_is_all_that_a_benchmark_prints() -> None:
    printed = json.loads(run("middlewares", "--rounds", "2", "--requests", "2", "--json"))
    assert {tuple(result) for result in printed} == {("name", "value", "goal", "holds", "low", "high")}
    assert {result["goal"] for result in printed} == {None, 1.08, 1.35}


# ------------------------------------------------------------------ goals


@pytest.mark.parametrize(
    ("value", "goal", "at_least", "holds"),
    [
        (1.04, 1.05, False, True),
        (1.05, 1.05, False, True),
        (1.06, 1.05, False, False),
        (0.95, 0.9, True, True),
        (0.9, 0.9, True, True),
        (0.89, 0.9, True, False),
        (1, 0, False, False),
        (0, 0, False, True),
        (nan, 1.0, False, False),
        (nan, 1.0, True, False),
        (7.0, None, False, None),
        (7.0, None, True, None),
    ],
)
def test_goal_is_a_maximum_or_a_minimum(
    value: float, goal: float | None, at_least: bool, holds: bool | None
) -> None:
    assert Result("name", value, goal, at_least=at_least).holds is holds


# ------------------------------------------------------------------ JSON and table

RESULTS = [
    Result("bare, µs", 12_345.6),
    Result("pool / bare", 1.0449, 1.05, 0.91, 1.234, note="two engines"),
    Result("kept", 0.8, 0.9, at_least=True),
]


def test_json_has_quartiles_where_there_are_some(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(RESULTS, as_json=True)
    assert json.loads(capsys.readouterr().out) == [
        {"name": "bare, µs", "value": 12_345.6, "goal": None, "holds": None},
        {"name": "pool / bare", "value": 1.0449, "goal": 1.05, "holds": True, "low": 0.91, "high": 1.234},
        {"name": "kept", "value": 0.8, "goal": 0.9, "holds": False},
    ]


def test_json_has_null_for_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    print_results([Result("p95", nan, 1.0, 0.5, inf)], as_json=True)
    expected = {"name": "p95", "value": None, "goal": 1.0, "holds": False, "low": 0.5, "high": None}
    assert capsys.readouterr().out == json.dumps([expected]) + "\n"


def test_table_shows_quartiles_goal_and_note(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(RESULTS, as_json=False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["bare,", "µs", "12,346"],
        ["pool", "/", "bare", "1.045", "0.910", "–", "1.234", "≤", "1.05", "✔", "two", "engines"],
        ["kept", "0.800", "≥", "0.9", "✘"],
    ]


def test_table_is_printed_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    def results() -> Iterator[Result]:
        for result in RESULTS:
            yield result
            assert capsys.readouterr().out == result.as_row() + "\n"

    print_results(results(), as_json=False)


# ------------------------------------------------------------------ rounds


def test_variants_take_turns_and_each_begins_a_round() -> None:
    assert list(turns("abc", 4)) == [*"abc", *"bca", *"cab", *"abc"]


def test_ratio_is_the_median_of_the_rounds() -> None:
    """The machine is three times as slow in the last two rounds."""
    base, values = [1.0, 1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 2.2, 6.0, 6.6]
    result = ratio_result("twice", values, base, goal=2.0)
    assert (result.low, result.value, result.high) == pytest.approx((2.0, 2.0, 2.2))
    assert (result.name, result.goal, result.holds) == ("twice", 2.0, True)


def test_the_control_ratio_of_medians_of_rounds_apart_is_another() -> None:
    base, values = [1.0, 1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 2.2, 6.0, 6.6]
    assert statistics.median(values) / statistics.median(base) == pytest.approx(2.2)


def test_one_round_has_no_quartiles() -> None:
    assert median_result("once", [1.5]) == Result("once", 1.5)


@pytest.mark.parametrize("values", [[1.0, 9.0], [1.0, 5.0, 9.0], [float(number) for number in range(60)]])
def test_quartiles_are_within_the_values(values: list[float]) -> None:
    result = median_result("value", values)
    assert result.low is not None and result.high is not None
    assert min(values) <= result.low <= result.value <= result.high <= max(values)
