"""Flame graphs of sampled stacks, as SVG without scripts (Gregg, "The Flame Graph", CACM 2016). Pure.

The root is at the top; a function's width is the share of the time in which it was on the stack. Text from
the service is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, ROW = 720, 17
LEAST = 0.004  # of the width: narrower functions are left out
DEEP = 48  # functions shown above each other
LETTER = 6.3  # pixels


@dataclass
class _Function:
    seconds: float = 0.0
    callees: dict[str, _Function] = field(default_factory=dict)


def flame(stacks: Sequence[tuple[Sequence[str], float]], *, title: str) -> str:
    """Draw folded stacks, each with its seconds; empty without any."""
    root = _Function()
    for names, seconds in stacks:
        root.seconds += seconds
        at = root
        for name in names[:DEEP]:
            at = at.callees.setdefault(name, _Function())
            at.seconds += seconds
    if root.seconds <= 0:
        return ""
    boxes = list(_boxes(root, 0.0, 0, root.seconds))
    depth = max((row for row, *_ in boxes), default=0) + 1
    parts = [
        f'<svg class="flame" viewBox="0 0 {WIDTH} {depth * ROW}" role="img" aria-label="{escape(title)}">'
    ]
    parts += [_box(row, left, width, name) for row, left, width, name in boxes]
    return "".join([*parts, "</svg>"])


def _boxes(at: _Function, left: float, row: int, whole: float) -> Iterator[tuple[int, float, float, str]]:
    for name, callee in sorted(at.callees.items()):
        share = callee.seconds / whole
        if share >= LEAST:
            yield row, left * WIDTH, share * WIDTH, f"{name}  {100 * share:.1f} %"
            yield from _boxes(callee, left, row + 1, whole)
        left += share


def _box(row: int, left: float, width: float, name: str) -> str:
    text = escape(name)
    letters = int((width - 4) / LETTER)
    label = escape(name if len(name) <= letters else f"{name[: max(letters - 1, 0)]}…") if letters > 3 else ""
    shade = 1 + sum(name.partition(":")[0].encode()) % 3
    return (
        f'<g><title>{text}</title><rect class="f{shade}" x="{left:.1f}" y="{row * ROW}" '
        f'width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 1}"/>'
        + (f'<text x="{left + 3:.1f}" y="{row * ROW + 12}">{label}</text>' if label else "")
        + "</g>"
    )
