"""Results of a benchmark: a table for people, or ``--json`` for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """One number of a benchmark beside its goal.

    Attributes:
        goal: the largest value that holds; None where there is no goal.
        low, high: the quartiles over the rounds.
    """

    name: str
    value: float
    goal: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the value keeps to its goal; None without one."""
        return None if self.goal is None else self.value <= self.goal


def print_results(results: Sequence[Result], *, as_json: bool) -> None:
    """Print all results."""
    if as_json:
        print(json.dumps([asdict(result) | {"holds": result.holds} for result in results]))
        return
    widest = max(len(result.name) for result in results)
    for result in results:
        spread = "" if result.low is None else f"  {result.low:.2f} – {result.high:.2f}"
        goal = "" if result.goal is None else f"  goal {result.goal:g} {'✔' if result.holds else '✘'}"
        print(f"{result.name:<{widest}}  {result.value:6.2f}{spread}{goal}")
