"""Small SVG charts for the one-file report: points, lines, a band. Pure: numbers in, markup out.

Colours come from CSS variables of the page that holds the chart, so that a dark page gets a dark chart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44


@dataclass(frozen=True, slots=True)
class Series:
    """One set of points; ``line`` connects them in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str  # a CSS colour, usually var(--c1)
    line: bool = True
    dots: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """Label, scale and range of an axis. A logarithmic axis leaves out values that are not positive."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None


def chart(
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    band: tuple[float, float] | None = None,
    limit: float | None = None,
    title: str = "",
) -> str:
    """Draw ``series`` as SVG. ``band`` marks a range of x, ``limit`` the highest allowed value of y."""
    points = [p for s in series for p in s.points if _drawable(p, x, y)]
    if not points:
        return ""
    xs = [p[0] for p in points] + list(band or ())
    ys = [p[1] for p in points] + ([limit] if limit is not None else [])
    at_x, x_ticks = _scale(x, xs, LEFT, WIDTH - RIGHT)
    at_y, y_ticks = _scale(y, ys, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title or y.label)}">',
        *_grid(x_ticks, y_ticks, at_x, at_y),
        *_marks(band, limit, at_x, at_y),
    ]
    for one in series:
        parts += _series(one, x, y, at_x, at_y)
    parts += [
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(x.label)}</text>',
        f'<text class="axis" transform="rotate(-90)" x="{-(TOP + HEIGHT - BOTTOM) / 2}" y="13">'
        f"{escape(y.label)}</text>",
        "</svg>",
    ]
    return "".join(parts)


def _drawable(point: tuple[float, float], x: Axis, y: Axis) -> bool:
    return (
        all(math.isfinite(v) for v in point) and (not x.log or point[0] > 0) and (not y.log or point[1] > 0)
    )


def _scale(
    axis: Axis, values: Sequence[float], start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    low = min(values) if axis.low is None else axis.low
    high = max(values) if axis.high is None else axis.high
    if axis.log:
        low, high = low / 1.08, high * 1.08
        span = math.log(high / low)
        return (lambda v: start + (end - start) * math.log(v / low) / span), _log_ticks(low, high)
    if high <= low:
        high = low + 1
    ticks = _ticks(low, high)
    low, high = ticks[0], ticks[-1]
    return (lambda v: start + (end - start) * (v - low) / (high - low)), ticks


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round ticks that cover the range (steps of 1, 2 or 5 times a power of ten)."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.floor(low / step)
    return [step * n for n in range(first, math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    ticks = [
        m * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for m in (1, 2, 5)
    ]
    return [t for t in ticks if low <= t <= high] or [math.sqrt(low * high)]


def _grid(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick y" x="{LEFT - 6}" y="{y + 4:.1f}">{_number(tick)}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text class="tick" x="{at_x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}">{_number(tick)}</text>'
        )
    return parts


def _marks(
    band: tuple[float, float] | None,
    limit: float | None,
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
) -> list[str]:
    parts = []
    if band is not None:
        left, right = at_x(band[0]), at_x(band[1])
        parts.append(
            f'<rect class="band" x="{left:.1f}" width="{max(right - left, 2):.1f}" y="{TOP}"'
            f' height="{HEIGHT - BOTTOM - TOP}"/>'
        )
    if limit is not None:
        y = at_y(limit)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return parts


def _series(
    one: Series, x: Axis, y: Axis, at_x: Callable[[float], float], at_y: Callable[[float], float]
) -> list[str]:
    points = sorted(p for p in one.points if _drawable(p, x, y))
    placed = [(at_x(px), at_y(py), px, py) for px, py in points]
    parts = []
    if one.line and len(placed) > 1:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in placed)
        parts.append(f'<polyline points="{path}" style="stroke:{escape(one.colour)}"/>')
    if one.dots:
        parts += [
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3.2" style="fill:{escape(one.colour)}">'
            f"<title>{escape(one.name)}: {_number(vx)} → {_number(vy)}</title></circle>"
            for cx, cy, vx, vy in placed
        ]
    return parts


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
