"""``report.html``: one file, no script, no external resources. Pure: a report in, a page out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenfold.errors import DependencyError
from tenfold.measure.report.chart import Axis, Series, chart
from tenfold.measure.report.flame import flame
from tenfold.measure.report.report import Report, TrialReport
from tenfold.measure.report.wording import (
    facts,
    headline,
    milliseconds,
    number,
    objective,
    part_name,
    slowest,
    weight,
)

if TYPE_CHECKING:
    from markupsafe import Markup

FLAMES = 4  # routes
COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)")


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its title, legend and caption."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, str]]  # name, CSS colour
    caption: str


def render(report: Report) -> str:
    """Render ``report`` as a page: text from the service is escaped, no script runs, nothing is fetched."""
    try:
        import jinja2
    except ImportError as error:
        raise DependencyError(
            "the HTML report needs Jinja2; install it with: pip install 'tenfold[measure]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tenfold.measure.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    environment.filters["weight"] = weight
    environment.filters["part_name"] = part_name
    environment.filters["milliseconds"] = milliseconds
    return environment.get_template("template.html").render(
        report=report,
        headline=headline(report),
        objective=objective(report.objective),
        facts=facts(report),
        slowest=slowest(report),
        flames=_flames(report),
        figures=[f for f in (_latency(report), _misses(report), _cpu(report)) if f is not None],
        conditions=_conditions(report),
    )


def _figure(
    title: str,
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    caption: str = "",
    band: tuple[float, float] | None = None,
    limit: float | None = None,
) -> Figure | None:
    from markupsafe import Markup

    svg = chart(series, x=x, y=y, band=band, limit=limit, title=title)
    # Safe: chart() escapes every text; everything else in the SVG is a number.
    return Figure(title, Markup(svg), [(s.name, s.colour) for s in series], caption) if svg else None  # noqa: S704


def _flames(report: Report) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Return the flame graphs of the routes that take the most time: on the CPU, and all of their time."""
    from markupsafe import Markup

    by_route: dict[str, list[tuple[list[str], float]]] = {}
    for folded, seconds in report.stacks:
        route, *names = folded.split(";")
        by_route.setdefault(route, []).append((names, seconds))
    longest = sorted(by_route, key=lambda route: -sum(seconds for _, seconds in by_route[route]))
    found = []
    for route in longest[:FLAMES]:
        on_cpu = [(names[1:], seconds) for names, seconds in by_route[route] if names[0] == "run"]
        graphs = [("on the CPU", on_cpu), ("all of the time, by state", by_route[route])]
        # Safe: flame() escapes every text; everything else in the SVG is a number.
        drawn = [(name, Markup(flame(stacks, title=f"{route}, {name}"))) for name, stacks in graphs]  # noqa: S704
        found.append((route, [(name, svg) for name, svg in drawn if svg]))
    return found


def _band(report: Report) -> tuple[float, float] | None:
    capacity = report.capacity
    if capacity is None or capacity.low is None or capacity.high is None:
        return None
    return capacity.low, capacity.high


def _trials(report: Report) -> list[TrialReport]:
    return [t for t in report.trials if t.offered and t.purpose not in ("warm-up", "recovery")]


def _latency(report: Report) -> Figure | None:
    measured = [(t.rate, t.corrected_ms) for t in _trials(report) if t.corrected_ms is not None]
    lines = {
        "p50": [(rate, ms.p50) for rate, ms in measured],
        "p95": [(rate, ms.p95) for rate, ms in measured],
        "p99": [(rate, ms.p99) for rate, ms in measured if ms.p99 is not None],
    }
    return _figure(
        "Latency by arrival rate",
        [
            Series(name, points, colour, line=False)
            for (name, points), colour in zip(lines.items(), COLOURS, strict=False)
        ],
        x=Axis("arrivals per second", log=True),
        y=Axis("milliseconds from the scheduled arrival", log=True),
        band=_band(report),
        limit=report.objective.slow_ms,
        caption="Each dot is a trial. Shaded: the capacity. Dashed: the objective.",
    )


def _misses(report: Report) -> Figure | None:
    points = [(t.rate, 100 * (t.offered - t.good) / t.offered) for t in _trials(report)]
    return _figure(
        "Arrivals that missed the objective",
        [Series("slow, failed, refused or unsent", points, COLOURS[2], line=False)],
        x=Axis("arrivals per second", log=True),
        y=Axis("per cent", low=0),
        band=_band(report),
        limit=100 * report.objective.bad_share,
        caption="Shaded: the capacity. Dashed: the share that the objective allows.",
    )


def _cpu(report: Report) -> Figure | None:
    series = [
        Series(s.name, list(zip(s.seconds, s.values, strict=False)), colour, dots=False)
        for s, colour in zip(report.series, COLOURS, strict=False)
    ]
    return _figure(
        "CPU used during the measurement",
        series,
        x=Axis("seconds", low=0),
        y=Axis("cores", low=0),
        caption="",
    )


def _conditions(report: Report) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    return f"Measured {report.started} on {report.target} with tenfold {report.tenfold}; {machine}."
