"""What the commands print: facts on stdout, 80 columns wide by default, readable without colour."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tenfold.types import Verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GLYPHS = {Verdict.PASS: "✔", Verdict.FAIL: "✘", Verdict.SKIP: "–"}
STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.SKIP: "dim"}


def console(*, stderr: bool = False) -> Console:
    """Plain text for plain text: no markup, no emoji, no colours of its own choice."""
    from rich.console import Console

    screen = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    screen.width = min(screen.width, 100)
    return screen


def columns(rows: Sequence[Sequence[str]], *, marks: Sequence[Verdict], widths: Sequence[int]) -> Table:
    """Rows under each other, each with the mark of its verdict. Widths are minima; 0 lets a column break."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(no_wrap=True)
    for width in widths:
        table.add_column(min_width=width or None, no_wrap=width > 0)
    for mark, row in zip(marks, rows, strict=True):
        table.add_row(Text(GLYPHS[mark], style=STYLES[mark]), *row)
    return table


def as_json(facts: Mapping[str, Any]) -> str:
    """The same facts for a program. A number that is none (NaN, infinity) is null."""
    return json.dumps(_finite(facts), ensure_ascii=False, indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
