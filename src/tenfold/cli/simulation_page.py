"""A simulation, and its pictures: one HTML file without scripts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from tenfold.measure.report.chart import Axis, Series, chart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tenfold.autoscaling.manifests import Scaler
    from tenfold.autoscaling.simulation import Outcome, Service

__all__ = ["Simulation", "render"]

_COLOURS = ("#0b63ce", "#c2410c", "#15803d", "#7e22ce", "#64748b")
_POINTS = 600
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #1f2937 }
svg { width: 100%; height: auto }
polyline { fill: none; stroke-width: 1.5 }
.grid { stroke: #e5e7eb } text { fill: #4b5563; font-size: 11px }
.tick { text-anchor: middle } .tick.y { text-anchor: end } .axis { text-anchor: middle }
.legend span { margin-right: 1.2rem } .legend b { font-weight: 600 }
@media (prefers-color-scheme: dark) { body { background: #111827; color: #e5e7eb } .grid { stroke: #374151 }
  text { fill: #9ca3af } }
"""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What is simulated, and what came out; the scaler's own outcome comes first."""

    scaler: Scaler
    service: Service
    trace: str
    rates: Sequence[float]
    outcomes: Sequence[Outcome]
    price: float
    reach_s: float
    remedy: tuple[str, Outcome] | None
    notes: Sequence[str]


def render(found: Simulation) -> str:
    """The page: instances over time, and what each policy costs for how many late requests."""
    every = max(len(found.rates) // _POINTS, 1)
    hours = [step * 15 / 3600 for step in range(0, len(found.rates), every)]
    lines = [
        Series(one.name, tuple(zip(hours, one.replicas[::every], strict=False)), _COLOURS[number], dots=False)
        for number, one in enumerate(found.outcomes)
    ]
    rates = [Series("rate", tuple(zip(hours, found.rates[::every], strict=False)), _COLOURS[4], dots=False)]
    pareto = [
        Series(one.name, ((one.replica_hours, one.late_share * 100),), _COLOURS[number], line=False)
        for number, one in enumerate(found.outcomes)
    ]
    x = Axis("hours")
    figures = [
        ("Requests per second", chart(rates, x=x, y=Axis("requests/s", low=0))),
        ("Instances", chart(lines, x=x, y=Axis("instances", low=0))),
        (
            "Late requests and cost: nearer to the corner is better",
            chart(pareto, x=Axis("replica-hours", low=0), y=Axis("late, %", low=0)),
        ),
    ]
    legend = "".join(
        f'<span><b style="color:{_COLOURS[number]}">●</b> {escape(one.name)}</span>'
        for number, one in enumerate(found.outcomes)
    )
    body = "".join(f"<h2>{escape(title)}</h2>{svg}" for title, svg in figures)
    title = escape(f"{found.scaler.name} under {found.trace}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'<h1>{title}</h1><p class="legend">{legend}</p>{body}</html>\n'
    )
