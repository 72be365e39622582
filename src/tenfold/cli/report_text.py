"""A report as text, for ``tenfold measure``. Pure: ``WIDTH`` columns, readable without colour."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from tenfold.measure.report.report import BottleneckReport, Latency, Report
from tenfold.measure.report.wording import (
    headline,
    milliseconds,
    number,
    part_name,
    recovery,
    share,
    slowest,
    weight,
)

WIDTH = 80
LABEL = 12
PARTS = 6  # of a request's time


def report_lines(report: Report) -> Iterator[str]:
    """Yield the whole report, line by line."""
    yield from _capacity(report)
    yield from _overload(report)
    yield from _generator(report)
    yield from _resources(report)
    yield ""
    yield from _limits(report)
    for notice in report.notices:
        yield from _wrap("Note", notice)


def _capacity(report: Report) -> Iterator[str]:
    capacity = report.capacity
    confidence = ""
    if capacity is not None and capacity.outcome == "found":
        confidence = f"{100 * capacity.confidence:.0f} % interval, {report.seconds:.0f} s"
    result = headline(report)
    yield f"{'Capacity':<{LABEL}}{result}{confidence:>{max(WIDTH - LABEL - len(result), 2)}}".rstrip()
    if capacity is not None and capacity.requests_per_arrival > 1.005 and capacity.low and capacity.high:
        each = f"{number(capacity.requests_per_arrival)} requests each"
        yield f"{'':<{LABEL}}{number(capacity.low)} – {number(capacity.high)} arrivals/s, {each}"
    if capacity is not None and capacity.outcome != "found":
        yield from _wrap("", capacity.reason)
    if report.interrupted:
        yield from _wrap("", "interrupted: these are the results so far")
    if report.latency_ms is not None:
        yield f"{'':<{LABEL}}{_latency(report.latency_ms)}   errors {share(report.error_share)}"
        measured = f"measured at {number(report.achieved_rps)} requests/s, {report.samples:,} requests"
        yield f"{'':<{LABEL}}{measured}"
        if report.latency_note:
            yield from _wrap("", report.latency_note)
    elif report.samples:
        few = f"{report.samples:,} requests: too few for percentiles   errors {share(report.error_share)}"
        yield f"{'':<{LABEL}}{few}"
    if report.refused_share:
        yield f"{'':<{LABEL}}refused {share(report.refused_share)} (429, 503)"
    for message, count in list(report.errors.items())[:3]:
        yield from _wrap("Error", f"{message} ({count} ×)")


def _latency(latency: Latency) -> str:
    pairs = (("p50", latency.p50), ("p95", latency.p95), ("p99", latency.p99))
    return "   ".join(f"{name} {milliseconds(value)}" for name, value in pairs if value is not None)


def _overload(report: Report) -> Iterator[str]:
    overload = report.overload
    if overload is None:
        return
    time = recovery(report)
    recovers = f"recovers in {time}" if overload.recovered_s is not None else f"recovers {time}"
    scale = report.capacity.requests_per_arrival if report.capacity else 1.0
    goodput = (
        f"at {number(overload.rate * scale)} requests/s goodput is {100 * overload.kept:.0f} % of capacity"
    )
    yield f"{'Overload':<{LABEL}}{goodput}; {recovers}"


def _generator(report: Report) -> Iterator[str]:
    if report.generator_cpu is None:
        return
    late = report.generator_late or 0.0
    sent_late = "no arrival sent late" if late == 0 else f"{share(late)} of arrivals sent late"
    yield f"{'Generator':<{LABEL}}{100 * report.generator_cpu:.0f} % of one core; {sent_late}"


def _resources(report: Report) -> Iterator[str]:
    if not report.resources:
        return
    cores = report.machine.get("cores", "?")
    used = " · ".join(f"{g.name} {g.cpu_cores_mean:.2f}" for g in report.resources)
    yield f"{'CPU cores':<{LABEL}}{used}   of {cores}"
    memory = " · ".join(f"{g.name} {g.rss_bytes_max / 2**20:.0f}" for g in report.resources)
    yield f"{'Memory MiB':<{LABEL}}{memory}"


def _limits(report: Report) -> Iterator[str]:
    limit = report.limit
    if limit is not None:
        yield from _wrap("", f"What stops it: {limit.title}", indent=2, first="")
        if limit.chain:
            yield from _wrap("", " ← ".join(reversed(limit.chain)), indent=2)
        for line in limit.evidence:
            yield from _wrap("", line, indent=2)
        if limit.remedy and not report.bottlenecks:
            yield from _wrap("", f"→ {limit.remedy}", indent=2)
    elif report.bottlenecks:
        yield "What was found"
    elif report.inside and report.capacity is not None and report.capacity.outcome != "at_least":
        yield "What stops it: nothing that was measured explains it"
    for rank, bottleneck in enumerate(report.bottlenecks, 1):
        yield from _bottleneck(rank, bottleneck)
    yield from _parts(report)
    if named := slowest(report):
        yield from _wrap("", named, indent=0)
    if report.not_measured:
        yield from _wrap("", "Not measured: " + "; ".join(report.not_measured), indent=2)


def _parts(report: Report) -> Iterator[str]:
    """Yield where a request's time goes, at low load and at the limit."""
    if not report.parts or report.limit is None:
        return
    yield f"{'Where the time of a request goes':<{WIDTH - 32}}{'low load':>16}{'at the limit':>16}"
    for part in report.parts[:PARTS]:
        low = "–" if part.low_ms is None else milliseconds(part.low_ms)
        yield f"  {part_name(part.name):<{WIDTH - 34}}{low:>16}{milliseconds(part.limit_ms):>16}"
    for line in report.present:
        yield from _wrap("", f"Also: {line}", indent=4, first="  ")


def _bottleneck(rank: int, one: BottleneckReport) -> Iterator[str]:
    told = ", ".join(filter(None, (weight(one), one.proof)))
    *others, last = textwrap.wrap(
        one.title, WIDTH - len(told) - 3, initial_indent=f"  {rank}  ", subsequent_indent=" " * 5
    )
    yield from others
    yield f"{last:<{WIDTH - len(told)}}{told}"
    for line in filter(None, (one.where, *one.evidence)):
        yield from textwrap.wrap(line, WIDTH, initial_indent=" " * 5, subsequent_indent=" " * 7)
    # A statement to copy stays on one line, however long it is.
    yield from textwrap.wrap(
        f"→ {one.remedy}",
        WIDTH,
        initial_indent=" " * 5,
        subsequent_indent=" " * 7,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _wrap(label: str, text: str, *, indent: int = LABEL, first: str | None = None) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{label:<{indent}}" if first is None else first,
        subsequent_indent=" " * indent,
        break_long_words=False,
    )
