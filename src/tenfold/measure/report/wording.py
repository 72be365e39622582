"""Wording of a report's numbers, shared by the terminal and the HTML page. Pure."""

from __future__ import annotations

from tenfold.measure.report.report import BottleneckReport, ObjectiveReport, Report
from tenfold.measure.settings import Objective


def number(value: float | None) -> str:
    """Format with three significant digits and no exponent: 0.123, 4.57, 45.7, 457, 4,570."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    for bound, places in ((100, 0), (10, 1), (1, 2)):
        if size >= bound:
            return f"{value:,.{places}f}"
    return f"{value:.3f}"


def share(value: float | None) -> str:
    """Format a share as per cent with one decimal."""
    return "–" if value is None else f"{100 * value:.1f} %"


def milliseconds(value: float | None) -> str:
    """Format a latency with its unit."""
    return "–" if value is None else f"{number(value)} ms"


def weight(one: BottleneckReport) -> str:
    """Return how much of the limit a cause uses up; empty when not known."""
    return "" if one.share is None else f"{100 * one.share:.0f} % of it"


def part_name(name: str) -> str:
    """Return a part of a request's time in words."""
    return _PARTS.get(name, name)


_PARTS = {
    "front": "before a worker took it",
    "pool": "waiting for a connection",
    "db": "in statements",
    "http": "in calls to other services",
    "run": "on the CPU, or waiting for it",
    "loop": "ready, while the event loop was busy",
    "thread": "waiting for a thread",
    "lock": "waiting for a lock",
    "sleep": "asleep",
    "io": "waiting for other sockets or files",
    "send": "waiting for the client to read",
    "other": "suspended otherwise",
}


def slowest(report: Report) -> str:
    """Return the slowest endpoint near the capacity, for a report without a bottleneck; else nothing."""
    if report.bottlenecks or report.limit is not None or not report.endpoints:
        return ""
    one = report.endpoints[0]
    latency = (
        f"p95 {milliseconds(one.corrected_ms.p95)}"
        if one.corrected_ms
        else f"mean {milliseconds(one.mean_ms)}"
    )
    return f"The slowest endpoint is {one.name}: {latency}, {one.requests:,} requests"


def headline(report: Report) -> str:
    """Return the result in a few words. Rates are requests per second; an arrival may be several requests."""
    capacity = report.capacity
    if capacity is None:
        return "closed loop: no capacity is claimed" if report.mode == "closed" else "no result"
    scale = capacity.requests_per_arrival
    if capacity.outcome == "found" and capacity.low is not None and capacity.high is not None:
        return f"{_rate(capacity.low * scale)} – {_rate(capacity.high * scale)} requests/s"
    if capacity.outcome == "at_least" and capacity.low is not None:
        return f"at least {_rate(capacity.low * scale)} requests/s"
    if capacity.outcome == "below":
        if capacity.high is not None and capacity.high > 1:
            return (
                f"misses its objective at every rate tried, from {_rate(capacity.high * scale)} requests/s on"
            )
        return "misses its objective even at one request at a time"
    return "undecided"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def objective(goal: Objective | ObjectiveReport) -> str:
    """Return the objective in words: ``p95 < 200 ms, errors < 5 %`` for the defaults."""
    quantile = 100 * (1 - goal.bad_share)
    return f"objective: p{quantile:g} < {goal.slow_ms:g} ms, errors < {100 * goal.bad_share:g} %"


def facts(report: Report) -> list[tuple[str, str]]:
    """Return the tiles under the headline: name and value."""
    latency = report.latency_ms
    rows = [
        ("p50", milliseconds(latency.p50 if latency else None)),
        ("p95", milliseconds(latency.p95 if latency else None)),
        ("p99", milliseconds(latency.p99 if latency else None)),
        ("requests per second", number(report.achieved_rps)),
        ("errors", share(report.error_share)),
    ]
    if report.refused_share:
        rows.append(("refused", share(report.refused_share)))
    if report.overload is not None:
        rows.append(("goodput under overload", share(report.overload.kept) + " of capacity"))
        rows.append(("recovers in", recovery(report)))
    rows.append(("generator", share(report.generator_cpu) + " of a core"))
    return rows


def recovery(report: Report) -> str:
    """Return the time that the service took to recover from overload."""
    overload = report.overload
    if overload is None:
        return "–"
    if overload.recovered_s is None:
        return f"not within {overload.watched_s:.0f} s"
    return f"{overload.recovered_s:.1f} s"
