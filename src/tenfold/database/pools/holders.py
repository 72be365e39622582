"""Who holds a connection, since when, and what was it last used for."""

from __future__ import annotations

import asyncio
import sys
import weakref
from asyncio import _get_running_loop, current_task
from collections import defaultdict
from collections.abc import Iterator, Sequence
from threading import get_ident
from types import FrameType
from typing import Any

from tenfold.callsites import CallSites, starting_frame
from tenfold.database.pools.request_context import NOBODY, Visit
from tenfold.fingerprint import fingerprint

SQL = 160  # characters of a statement in a message
ROUTES = 4  # routes named in a message; the rest is a number

Owner = Visit | int | weakref.ref[Any]


class Holder:
    """One connection, from the moment it is handed out until it comes back. Times are ``perf_counter()``.

    Made for every checkout: what most of them never need is a default of the class.
    """

    task: weakref.ref[asyncio.Task[Any]] | None = None
    site = ""  # where it was taken, of a sample
    sql = ""  # the last statement, as the driver got it
    idle_since = 0.0  # when that ended, while a transaction is open; 0 otherwise
    reported = False  # as held too long

    def __init__(self, visit: Visit | None, since: float, waited_s: float) -> None:
        self.visit = visit
        self.since = since
        self.waited_s = waited_s
        self.thread = get_ident()
        task = current_task() if _get_running_loop() is not None else None
        if task is not None:
            # Weak: a task that forgot its connection must stay for the garbage collector to find.
            self.task = weakref.ref(task)
        # Whoever has two connections when two holders have the same owner.
        self.owner: Owner = visit or self.task or self.thread

    @property
    def title(self) -> str:
        """The request or the job; ``other`` where nobody said."""
        return self.visit.title if self.visit is not None else NOBODY

    def whereabouts(self, sites: CallSites) -> str:
        """Where in the user's code the holder is, or that it has ended and left the connection behind."""
        at = of_thread(sites, self.thread) if self.task is None else ""
        if self.task is not None:
            task = self.task()
            if task is None or task.done():
                return "its task has ended"
            at = of_task(sites, task)
        return f"now at {at}" if at else ""

    def told(self, sites: CallSites, now: float) -> str:
        """What is known, in one line, the values in the statement hidden."""
        idle = f"idle in a transaction for {now - self.idle_since:.1f} s" if self.idle_since else ""
        parts = [
            f"{now - self.since:.1f} s",
            idle,
            self.whereabouts(sites),
            f"taken at {self.site}" if self.site else "",
            f"last SQL {fingerprint(self.sql, limit=SQL)}" if self.sql else "no statement yet",
        ]
        return ", ".join(filter(None, parts))


def described(holders: Sequence[Holder], sites: CallSites, now: float) -> str:
    """Who holds the connections, most of them first: ``28 × GET /orders (longest 12.1 s, …), 2 × …``."""
    groups: dict[str, list[Holder]] = defaultdict(list)
    for holder in holders:
        groups[holder.title].append(holder)
    largest = sorted(groups.items(), key=lambda group: len(group[1]), reverse=True)
    told = [
        f"{len(group)} × {title} (longest {min(group, key=lambda holder: holder.since).told(sites, now)})"
        for title, group in largest[:ROUTES]
    ]
    rest = sum(len(group) for _, group in largest[ROUTES:])
    return ", ".join([*told, f"{rest} × others"] if rest else told) or "nobody"


# Where in the user's code is a task, a thread, or whoever asks? Innermost line first, libraries left out.
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
