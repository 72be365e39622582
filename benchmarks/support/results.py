"""Results of a benchmark: a table for people, or ``--json`` for machines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """One number of a benchmark beside its goal.

    Attributes:
        goal: the largest value that holds; None where there is no goal.
        low, high: the quartiles over the rounds, or the 95 % limits of a share; None where there are none.
        at_least: the goal is the smallest value that holds.
        note: what the table shows beside the number.
    """

    name: str
    value: float
    goal: float | None = None
    low: float | None = None
    high: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """True if the value keeps to its goal; None without one."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def as_json(self) -> dict[str, Any]:
        """Return the fields for ``--json``; JSON has no infinite numbers, null stands for them."""
        fields = {"name": self.name, "value": _finite(self.value), "goal": self.goal, "holds": self.holds}
        if self.low is not None:
            fields |= {"low": _finite(self.low), "high": _finite(self.high)}
        return fields

    def as_row(self) -> str:
        """Return the line of the table."""
        low, high = self.low, self.high
        spread = "" if low is None or high is None else f"{_short(low)} – {_short(high)}"
        bound = "≥" if self.at_least else "≤"
        goal = "" if self.goal is None else f"{bound} {self.goal:g} {'✔' if self.holds else '✘'}"
        return f"{self.name:<48}{_short(self.value):>9}{spread:>20}  {goal:<8}  {self.note}".rstrip()


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list of name, value, goal, holds, low, high"
    )
    return parser


def print_results(results: Iterable[Result], *, as_json: bool) -> None:
    """Print all results; the lines of the table as soon as they are there."""
    if as_json:
        print(json.dumps([result.as_json() for result in results], allow_nan=False))
        return
    for result in results:
        print(result.as_row(), flush=True)


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _short(value: float) -> str:
    places = 3 if abs(value) < 10 else 1 if abs(value) < 10_000 else 0
    return f"{value:,.{places}f}"
