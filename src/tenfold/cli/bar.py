"""Progress of a measurement: one line that is redrawn on a terminal, and a few lines in a log."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Display
from rich.table import Column
from rich.text import Text

from tenfold.measure.measurement import Progress

WIDTH = 80
CELLS = 24
LOG_EVERY_S = 10.0  # between two lines of one phase in a log
WORDS = {
    "warm-up": "warming up",
    "ramp": "doubling",
    "search": "bisecting",
    "confirm": "confirming",
    "alone": "one at a time",
    "wait": "waiting until idle",
    "restart": "restarting",
    "overload": "overloading",
    "recovery": "recovering",
}
MARKS = {"passed": "✔", "failed": "✘"}


def status(progress: Progress, *, width: int) -> str:
    """Phase, rates and time in at most ``width`` columns; the newest rates survive when room is short."""
    head = f"{WORDS.get(progress.phase, progress.phase):<11}"
    tail = f"{progress.elapsed_s:4.0f} s"
    if progress.phase not in ("warm-up", "overload", "recovery", "diagnosing"):
        tail = f"{progress.elapsed_s:4.0f} of {progress.budget_s:.0f} s"
    seen = [f"{rate:.3g} {MARKS.get(verdict, '?')}" for rate, verdict in progress.verdicts]
    if progress.rate:
        seen.append(f"{progress.rate:.3g} …")
    room = width - len(head) - len(tail) - 3
    while seen and len("  ".join(seen)) > room:
        seen.pop(0)
    return f"{head} {'  '.join(seen):<{room}}  {tail}"


class Bar:
    """Show progress on ``stream`` while entered.

    A terminal has one line, redrawn in place. A log has a line for each phase, and one every ``LOG_EVERY_S``
    while a phase lasts, however many trials there are.
    """

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        line = TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="crop")
        )
        self._display = Display(
            BarColumn(CELLS, complete_style="default", finished_style="default", pulse_style="default"),
            line,
            console=self._console,
            refresh_per_second=5,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._display.add_task("", total=None, visible=False)
        self._logged: tuple[str, float] = ("", 0.0)  # the phase, and when it was last written about

    def __enter__(self) -> Bar:
        self._display.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.stop()

    def step(self, text: str) -> None:
        """Show the current step; a log has the first line of several that differ after a colon."""
        self._display.update(self._task, description=text, total=None, visible=True)
        self._log(text.partition(":")[0], 0.0, text)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._display.update(self._task, visible=False, refresh=True)
        self._console.print(Text(text), soft_wrap=True)

    def done(self, label: str, text: str, seconds: float | None = None) -> None:
        """Print that a step is done, and its duration."""
        took = "" if seconds is None else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
        line = f"✔ {label:<8}{text}"
        self.say(f"{line}{took:>{max(WIDTH - len(line), len(took) + 2)}}".rstrip())

    def show(self, progress: Progress) -> None:
        """Draw ``progress``, or write a line about it when one is due."""
        self._display.update(
            self._task,
            description=status(progress, width=WIDTH - CELLS - 1),
            completed=progress.elapsed_s,
            total=progress.budget_s,
            visible=True,
        )
        if progress.phase != "wait":  # a few seconds between two trials
            self._log(progress.phase, progress.elapsed_s, status(progress, width=WIDTH))

    def _log(self, phase: str, elapsed_s: float, text: str) -> None:
        last, at = self._logged
        if self._console.is_terminal or (phase == last and elapsed_s - at < LOG_EVERY_S):
            return
        self._logged = (phase, elapsed_s)
        self._console.print(Text(text), soft_wrap=True)
