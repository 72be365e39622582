"""Lines of user code on which unfinished requests stand: in worker threads, and in suspended coroutines."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tenfold.callsites import CallSites

WORKERS = ("AnyIO worker thread", "ThreadPoolExecutor", "asyncio_")  # names of threads that run endpoints
LOOKED_AT = 200  # threads and tasks
DEPTH = 100  # coroutines that await each other


def current_task() -> Any:
    """Return the running asyncio task, or None on another event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def stuck_lines(sites: CallSites, tasks: Iterable[Any]) -> dict[str, int]:
    """Return the innermost user lines of worker threads and of ``tasks``, with how many stand on each."""
    lines: Counter[str] = Counter()
    try:
        workers = [one.ident for one in threading.enumerate() if one.name.startswith(WORKERS)]
        frames = sys._current_frames()
        for ident in workers[:LOOKED_AT]:
            lines[sites.find(frames.get(ident or 0)).where] += 1
        for task in list(tasks)[:LOOKED_AT]:
            if isinstance(task, int):  # the thread of a WSGI request
                lines[sites.find(frames.get(task)).where] += 1
            else:
                lines[_line_of(sites, task)] += 1
    except Exception:  # a task that ends meanwhile, another kind of coroutine: the app must not notice
        return {}
    del lines[""]
    return dict(lines)


def _line_of(sites: CallSites, task: Any) -> str:
    """Return the innermost user line of a suspended task; empty when it waits in a library's own task."""
    found, waiting = "", task.get_coro() if task is not None else None
    for _ in range(DEPTH):
        frame = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        if waiting is None:
            break
        found = sites.find(frame).where or found
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return found
