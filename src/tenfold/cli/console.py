"""Output of the commands: a plain console, tables with verdicts, JSON. Readable without colour."""

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
    """Return a rich console that prints text as it is: no markup, no emoji, no highlighting."""
    from rich.console import Console

    screen = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    screen.width = min(screen.width, 100)
    return screen


def verdict_table(rows: Sequence[tuple[Verdict, Sequence[str]]], *, widths: Sequence[int]) -> Table:
    """Return a table of rows, each behind its verdict's mark. Widths are minima; 0 lets a column wrap."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    for width in widths:
        table.add_column(min_width=width or None, no_wrap=width > 0)
    for verdict, cells in rows:
        table.add_row(Text(GLYPHS[verdict], style=STYLES[verdict]), *cells)
    return table


def to_json(facts: Mapping[str, Any]) -> str:
    """Encode ``facts`` as JSON; NaN and infinity become null."""
    return json.dumps(_replace_non_finite(facts), ensure_ascii=False, indent=2, allow_nan=False)


def _replace_non_finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
