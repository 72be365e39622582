"""Optional steps of a measurement: one that fails is reported as not measured, and the result is kept."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tenfold.errors import TenfoldError

Result = TypeVar("Result")
Default = TypeVar("Default")
SHOWN = 200  # characters of an error's text


class OptionalSteps:
    """Run steps without which the capacity is still known; record the reason of each that fails."""

    def __init__(self) -> None:
        self._failures: dict[str, str] = {}

    @property
    def failures(self) -> tuple[str, ...]:
        """One ``step: reason`` for each step that failed, in the order of their first failures."""
        return tuple(f"{step}: {reason}" for step, reason in self._failures.items())

    def run(self, step: str, do: Callable[[], Result], *, otherwise: Default) -> Result | Default:
        """Return what ``do`` returns, or ``otherwise`` when it raises. Ctrl-C passes through."""
        try:
            return do()
        except Exception as error:  # whatever it is, the measurement took longer than the step
            self._failures.setdefault(step, failure_reason(error))
            return otherwise


def failure_reason(error: Exception) -> str:
    """Return an error in one line; one that is not tenfold's own with its type and where it was raised."""
    text = str(error).strip().splitlines()[0][:SHOWN] if str(error).strip() else ""
    if isinstance(error, TenfoldError) and text:
        return text
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{f' {text}' if text else ''}{place}"
