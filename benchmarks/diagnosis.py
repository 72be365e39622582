"""How often the diagnosis is right: services with planted causes of random strength, measured one by one.

Each service has one or two causes, or none (healthy); a seed chooses their strength. ``tenfold measure`` runs
on each as a user would run it. Printed: the share of services whose cause is named first, with its line;
false alarms; and services for which the generator or the machine was blamed. Use a seed that was not used in
development. ``--twins`` measures each remedied twin, too: a cause counts when its removal gains 20 %.

    python -m benchmarks.diagnosis [--seed 11] [--only lock,gil] [--budget-s 30] [--twins] [--json]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tests.measure.lab.lab import LAB, Judgement, Planted, judge, run

from benchmarks.support.results import Result, benchmark_parser, print_results

GAINS = 1.2
BLAMED = ("others", "machine", "quota")


def main() -> None:
    """Measure the services and print the shares."""
    options = parse()
    planted = [one for one in LAB if not options.only or one.name in options.only.split(",")]
    print_results(measure(planted, options), as_json=options.json)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--only", default="", help="names of services, separated by commas")
    parser.add_argument("--budget-s", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--twins", action="store_true", help="measure the remedied twins, too")
    return parser.parse_args()


def measure(planted: Sequence[Planted], options: argparse.Namespace) -> Iterator[Result]:
    """Measure each service and yield the shares over all, and the gains of the twins."""
    judged: list[tuple[Planted, Judgement, str]] = []
    for one in planted:
        report = run(one, options.seed, budget_s=options.budget_s)
        limit = (report.get("limit") or {}).get("resource", "")
        judged.append((one, judge(one, report), limit))
        print(row(one, judged[-1][1], limit, report), file=sys.stderr, flush=True)
        if options.twins and one.causes and one.twin:
            twin = run(one, options.seed, remedied=True, budget_s=options.budget_s)
            yield Result(f"gain of the twin: {one.name}", gain(report, twin), GAINS, at_least=True)
    causes = [found for one, found, _ in judged if one.causes]
    if causes:
        yield share("cause named first", [found.first for found in causes])
        yield share("with its line", [found.line for found in causes])
    yield Result("false alarms", sum(len(found.false_alarms) for _, found, _ in judged), 0)
    yield Result("generator or machine blamed", sum(limit in BLAMED for _, _, limit in judged), 0)


def share(name: str, hits: Sequence[bool]) -> Result:
    """Return a share whose goal is all."""
    return Result(name, sum(hits) / len(hits), 1.0, at_least=True, note=f"{sum(hits)} of {len(hits)}")


def gain(report: dict[str, Any], twin: dict[str, Any]) -> float:
    """Return by how much the twin's capacity is higher: the middles of the intervals."""
    return middle(twin) / max(middle(report), 1e-9)


def middle(report: dict[str, Any]) -> float:
    """Return the middle of a capacity; one that was not reached is taken for its known end."""
    capacity = report.get("capacity") or {}
    ends = [end for end in (capacity.get("low"), capacity.get("high")) if end]
    return sum(ends) / len(ends) if ends else 0.0


def row(one: Planted, found: Judgement, limit: str, report: dict[str, Any]) -> str:
    """Return the line of one service: what was planted, and what was named."""
    named = ", ".join(cause["cause"] for cause in report.get("bottlenecks", ())) or "–"
    right = "✔" if found.first and found.line and not found.false_alarms else "✘"
    return f"{right} {one.name:<20} {limit or '–':<10} {named}"


if __name__ == "__main__":
    main()
