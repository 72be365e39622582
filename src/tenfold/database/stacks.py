"""Where in the user's code is a task, a thread, or whoever asks? Innermost line first, libraries left out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from tenfold.measure.callsites import CallSites, starting_frame

LINES = 5  # of the user's code, in one stack
AWAITS = 100  # coroutines followed from a task inwards


def here(sites: CallSites) -> str:
    """Where the caller is; under an async engine also where its greenlet was started from."""
    return _written(sites.stack(sys._getframe(1), most=LINES) or sites.stack(starting_frame(), most=LINES))


def of_task(sites: CallSites, task: asyncio.Task[Any]) -> str:
    """Where a task waits. ``Task.get_stack`` knows its outermost frame only."""
    if asyncio._get_running_loop() is not None and task is asyncio.current_task():
        return here(sites)
    frames = list(_awaited(task.get_coro()))
    lines = [line for frame in reversed(frames) for line in sites.stack(frame, most=1)]
    return _written(lines[:LINES])


def of_thread(sites: CallSites, thread: int) -> str:
    """Where a thread is right now; empty when it has ended."""
    return _written(sites.stack(sys._current_frames().get(thread), most=LINES))


def _awaited(awaitable: object) -> Iterator[FrameType]:
    """The frames of a coroutine and of what it awaits, outermost first."""
    for _ in range(AWAITS):
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)
        if frame is None:
            return
        yield frame
        awaitable = getattr(awaitable, "cr_await", None) or getattr(awaitable, "gi_yieldfrom", None)


def _written(lines: list[Any]) -> str:
    return " < ".join(line.where for line in lines)
