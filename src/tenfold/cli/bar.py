"""The line that shows a measurement while it runs: redrawn on a terminal, one line a trial elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from tenfold.measure.measurement import Progress

WIDTH = 80
CELLS = 24
WORDS = {
    "warm-up": "warming up",
    "ramp": "doubling",
    "search": "bisecting",
    "confirm": "confirming",
    "overload": "overloading",
    "recovery": "recovering",
}
MARKS = {"passed": "✔", "failed": "✘"}


def bar_line(progress: Progress) -> str:
    """``progress`` as one line of at most ``WIDTH`` columns; the newest rates survive when room is short."""
    done = min(progress.elapsed_s / progress.budget_s, 1.0) if progress.budget_s else 1.0
    full = round(done * CELLS)
    head = "━" * full + "╌" * (CELLS - full) + f"  {WORDS.get(progress.phase, progress.phase):<11}"
    tail = f"{progress.elapsed_s:4.0f} s"
    if progress.phase in ("ramp", "search", "confirm"):
        tail = f"{progress.elapsed_s:4.0f} of {progress.budget_s:.0f} s"
    seen = [f"{rate:.3g} {MARKS.get(verdict, '?')}" for rate, verdict in progress.verdicts]
    if progress.rate:
        seen.append(f"{progress.rate:.3g} …")
    room = WIDTH - len(head) - len(tail) - 3
    while seen and len("  ".join(seen)) > room:
        seen.pop(0)
    return f"{head} {'  '.join(seen):<{room}}  {tail}"


class Bar:
    """Shows progress on ``stream`` from entering to leaving."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._last: tuple[str, float] | None = None
        self._drawn = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the line off the terminal, so that something else can be printed."""
        if self._live:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def step(self, text: str) -> None:
        """Say that something is under way."""
        self.clear()
        self._stream.write(f"{text}\n" if not self._live else text)
        self._stream.flush()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def done(self, label: str, text: str, seconds: float | None = None) -> None:
        """Say that something is done, and how long it took."""
        self.clear()
        took = "" if seconds is None else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
        line = f"✔ {label:<8}{text}"
        self._stream.write(f"{line}{took:>{max(WIDTH - len(line), len(took) + 2)}}\n".rstrip() + "\n")
        self._stream.flush()

    def show(self, progress: Progress) -> None:
        """Draw ``progress``: at most five times a second on a terminal, else once a trial."""
        if self._live:
            now = time.monotonic()
            if now - self._drawn > 0.2:
                self._drawn = now
                self._stream.write("\r\x1b[2K" + bar_line(progress))
                self._stream.flush()
            return
        trial = (progress.phase, progress.rate)
        if trial != self._last:
            self._last = trial
            self._stream.write(bar_line(progress) + "\n")
            self._stream.flush()
