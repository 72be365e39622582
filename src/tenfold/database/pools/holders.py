"""Holders of connections: since when, for which request, where in the user's code, with which statement."""

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
from tenfold.database.pools.request_context import OTHER, RequestContext
from tenfold.fingerprint import fingerprint

MAX_SQL = 160  # characters of a statement in a message
MAX_ROUTES = 4  # routes named in a message; the rest is a number
MAX_LINES = 5  # of the user's code, in one stack
MAX_AWAITS = 100  # coroutines followed from a task inwards

Owner = RequestContext | int | weakref.ref[Any]


class Holder:
    """One use of a connection, from its checkout to its return. Times are ``perf_counter()``.

    Made for every checkout: what most of them never need is a default of the class.
    """

    task: weakref.ref[asyncio.Task[Any]] | None = None
    site = ""  # of the checkout; kept of a sample only
    sql = ""  # the last statement, as the driver got it
    idle_since = 0.0  # when that ended, while a transaction is open; 0 otherwise
    reported = False  # as held too long

    def __init__(self, context: RequestContext | None, since: float, waited_s: float) -> None:
        self.context = context
        self.since = since
        self.waited_s = waited_s
        self.thread = get_ident()
        task = current_task() if _get_running_loop() is not None else None
        if task is not None:
            # Weak: a task that forgot its connection must stay for the garbage collector to find.
            self.task = weakref.ref(task)
        # Two holders with the same owner are one request or task with two connections.
        self.owner: Owner = context or self.task or self.thread

    @property
    def title(self) -> str:
        """The request or the job; ``other`` without a context."""
        return self.context.title if self.context is not None else OTHER

    def location(self, sites: CallSites) -> str:
        """The present lines of user code of the holder, or that its task has ended."""
        if self.task is None:
            at = thread_location(sites, self.thread)
        elif (task := self.task()) is None or task.done():
            return "its task has ended"
        else:
            at = task_location(sites, task)
        return f"now at {at}" if at else ""

    def describe(self, sites: CallSites, now: float) -> str:
        """Everything that is known, in one line, the values in the statement hidden."""
        idle = f"idle in a transaction for {now - self.idle_since:.1f} s" if self.idle_since else ""
        parts = [
            f"{now - self.since:.1f} s",
            idle,
            self.location(sites),
            f"taken at {self.site}" if self.site else "",
            f"last SQL {fingerprint(self.sql, limit=MAX_SQL)}" if self.sql else "no statement yet",
        ]
        return ", ".join(filter(None, parts))


def describe_holders(holders: Sequence[Holder], sites: CallSites, now: float) -> str:
    """Count holders by title, most first: ``28 × GET /orders (longest 12.1 s, …), 2 × …``."""
    groups: dict[str, list[Holder]] = defaultdict(list)
    for holder in holders:
        groups[holder.title].append(holder)
    largest = sorted(groups.items(), key=lambda group: len(group[1]), reverse=True)
    parts = [
        f"{len(group)} × {title} (longest {min(group, key=lambda holder: holder.since).describe(sites, now)})"
        for title, group in largest[:MAX_ROUTES]
    ]
    rest = sum(len(group) for _, group in largest[MAX_ROUTES:])
    return ", ".join([*parts, f"{rest} × others"] if rest else parts) or "no known holder"


# ------------------------------------------------------------------ locations: innermost line first


def current_location(sites: CallSites) -> str:
    """The caller's lines of user code; under an async engine also where its greenlet was started from."""
    lines = sites.stack(sys._getframe(1), most=MAX_LINES) or sites.stack(starting_frame(), most=MAX_LINES)
    return _joined(lines)


def task_location(sites: CallSites, task: asyncio.Task[Any]) -> str:
    """The lines at which a task waits. ``Task.get_stack`` knows its outermost frame only."""
    if asyncio._get_running_loop() is not None and task is asyncio.current_task():
        return current_location(sites)
    frames = list(_awaited_frames(task.get_coro()))
    lines = [line for frame in reversed(frames) for line in sites.stack(frame, most=1)]
    return _joined(lines[:MAX_LINES])


def thread_location(sites: CallSites, thread: int) -> str:
    """The lines at which a thread is right now; empty when it has ended."""
    return _joined(sites.stack(sys._current_frames().get(thread), most=MAX_LINES))


def _awaited_frames(awaitable: object) -> Iterator[FrameType]:
    """The frames of a coroutine and of what it awaits, outermost first."""
    for _ in range(MAX_AWAITS):
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)
        if frame is None:
            return
        yield frame
        awaitable = getattr(awaitable, "cr_await", None) or getattr(awaitable, "gi_yieldfrom", None)


def _joined(lines: list[Any]) -> str:
    return " < ".join(line.where for line in lines)
