"""Samples of what requests stand at: their state, their line, their stack.

One thread looks at every request that runs, some twenty times a second while a measurement listens. States:

- ``run``: wants the CPU. How much of that time it had one, waited in the run queue or for the interpreter is
  in the clocks of the batch (:class:`ClockRecord`), not in the single sample.
- ``pool``: waits for a connection. ``db``, ``http``: waits for the response to a statement or an HTTP call.
- ``lock``, ``sleep``, ``io`` (another socket, a file), ``thread`` (no worker thread is free), ``loop``
  (ready, and its event loop has not come to it yet), ``send`` (its client does not read), ``other``.

A suspended coroutine is followed from the one that the probe awaits, ``cr_await`` by ``cr_await``; a task
that a middleware started is found among all tasks of the loop by the endpoint on its stack.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

from tenfold.measure.probe import probe_protocol, stack_labels, thread_states
from tenfold.measure.probe.eventloop import LoopMonitor
from tenfold.measure.probe.probe_protocol import ClockRecord, RequestRecord, SampleRecord
from tenfold.measure.probe.recorder import Recorder, RunningRequest
from tenfold.measure.probe.stack_labels import Stack

SUSPENDED = 50  # requests looked at in one sample, at random
THREADS = 64
PROCFS = 16  # threads whose state is read in one sample
RECORDS = 2_000  # kept between two frames
STACKS = 400
DEPTH = 80
WAITS_DEPTH = 8  # functions above the one that waits
MOST_CPU = 0.02  # of one core, for all of this
IN_THREAD = ("in thread", "child")  # states of a coroutine whose work a thread may do
TASKS = 200  # of a middleware, looked at in one sample

_STATE_OF_CALL = {
    "lock": "lock",
    "sleep": "sleep",
    "io": "io",
    "poll": "io",
    "file": "io",
    "fsync": "io",
    "wait": "io",
}


class StackSampler:
    """Sample the requests of a recorder. One thread calls :meth:`sample` and :meth:`drain`."""

    def __init__(self, recorder: Recorder, monitor: LoopMonitor) -> None:
        self._recorder, self._monitor = recorder, monitor
        self._supported = thread_states.is_supported()
        self._random = random.Random(1)  # noqa: S311 - which requests are looked at
        self._labels = stack_labels.StackLabels(recorder.sites)
        self._last = self._not_before = 0.0
        self._clocks: dict[int, thread_states.Clock] = {}
        self._tally: dict[int, dict[str, float]] = {}
        self._clear()

    def start(self) -> None:
        """Start with an empty record: a new collector listens."""
        self._last = 0.0
        self._clocks.clear()
        self._clear()

    def sample(self) -> None:
        """Look once, unless the last look was so expensive that this one would exceed ``MOST_CPU``."""
        now = time.perf_counter()
        if now < self._not_before:
            return
        seconds, self._last = (min(now - self._last, 1.0) if self._last else 0.0), now
        before = time.thread_time()
        try:
            _Look(self, seconds).record()
        except Exception:  # a thread or task that ends meanwhile: the app must not notice
            self.failures += 1
        self._not_before = time.perf_counter() + (time.thread_time() - before) * (1 / MOST_CPU - 1)

    def drain(self, batch: probe_protocol.Batch) -> None:
        """Move the samples into the batch."""
        batch.samples, batch.stacks = list(self.records.values()), self.stacks
        if self._supported:
            batch.loop, batch.threads = self.loop, self.threads
        self._clear()

    def _clear(self) -> None:
        self.records: dict[tuple[Any, ...], SampleRecord] = {}
        self.stacks: dict[str, float] = {}
        self.loop, self.threads = ClockRecord(), ClockRecord()
        self.failures = 0

    def spent(self, tid: int) -> thread_states.Clock:
        """Return a thread's time on a CPU and in the run queue since it was last asked for."""
        clock = thread_states.read_clock(tid) if self._supported else None
        before = self._clocks.get(tid)
        if clock is None:
            return thread_states.Clock(0.0, 0.0)
        if len(self._clocks) > 10 * THREADS:
            self._clocks.clear()
        self._clocks[tid] = clock
        if before is None:
            return thread_states.Clock(0.0, 0.0)
        return thread_states.Clock(
            max(clock.cpu_s - before.cpu_s, 0.0), max(clock.runqueue_s - before.runqueue_s, 0.0)
        )

    def call(self, tid: int) -> tuple[str, int]:
        """Return what a thread does now."""
        return thread_states.read_call(tid) if self._supported and tid else ("run", -1)


class _Seen(NamedTuple):
    """A stack as it was at one moment: frames move on as soon as the interpreter lock is released.

    It keeps no frame: that would keep the locals of a function that has returned.
    """

    codes: list[CodeType]  # the innermost first
    site: str
    detail: str
    waits: bool  # its innermost function waits for a lock


class _Waits(NamedTuple):
    """What a request waited for at that moment, by its hooks."""

    pool: bool
    round_trip: str
    holds: bool
    thread: int

    @classmethod
    def of(cls, record: RequestRecord) -> _Waits:
        return cls(record.waits_since > 0, record._round_trip, record._holds > 0, record._thread)

    def state(self, state: str, detail: str) -> tuple[str, str]:
        """Return the state of a request that was seen in another: what it computes, it does not wait for."""
        if self.pool:
            return "pool", ""
        if not self.round_trip or state == "run":
            return state, detail
        return ("db", "") if self.round_trip == "db" else ("http", self.round_trip)


class _Look:
    """One look at all requests and threads.

    All stacks are read first, without anything that releases the interpreter lock: the kernel's account of
    the threads is read from files.
    """

    def __init__(self, sampler: StackSampler, seconds: float) -> None:
        self._sampler, self._seconds = sampler, seconds
        self._recorder, self._labels = sampler._recorder, sampler._labels
        monitor = sampler._monitor
        self._loop = monitor.thread if not monitor.idle else 0
        self._native = {one.ident or 0: one.native_id or 0 for one in threading.enumerate()}
        self._native.update(self._recorder.native_ids)
        mine = threading.get_ident()
        running = self._recorder.running()
        self._on_loop: tuple[RunningRequest, _Waits] | None = None
        self._suspended: list[tuple[RunningRequest, _Waits, str, _Seen]] = []
        self._children: list[tuple[int, str, _Seen]] = []
        frames = sys._current_frames()
        self._threads = {
            ident: self._describe(list(_stack(frame)))
            for ident, frame in list(frames.items())[:THREADS]
            if ident != mine
        }
        del frames
        self._by_thread = {one.thread: (one, _Waits.of(one.request)) for one in running if one.thread}
        self._weight = self._read_coroutines(running)
        # A request may hold the connection that another thread took for it: only while its coroutine waits
        # for a thread is that thread its own.
        self._by_thread.update(
            {waits.thread: (one, waits) for one, waits, state, _ in self._suspended if state in IN_THREAD}
        )

    def _read_coroutines(self, running: list[RunningRequest]) -> float:
        """Follow the suspended requests; return how many each of those that were looked at stands for."""
        suspended = []
        for one in running:
            if getattr(one.coroutine, "cr_running", False):
                self._on_loop = (one, _Waits.of(one.request))
            elif not one.thread:
                suspended.append(one)
        weight = max(len(suspended) / SUSPENDED, 1.0)
        if len(suspended) > SUSPENDED:
            suspended = self._sampler._random.sample(suspended, SUSPENDED)
        for one in suspended:
            state, seen = self._follow(one.coroutine, one.task)
            self._suspended.append((one, _Waits.of(one.request), state, seen))
        if any(state == "child" for _, _, state, _ in self._suspended):
            self._read_children({id(one.coroutine) for one in running})
        return weight

    def _read_children(self, own: set[int]) -> None:
        """Follow the tasks that middlewares started for requests."""
        loop = self._sampler._monitor.loop
        for task in list(asyncio.all_tasks(loop))[:TASKS]:
            coroutine = task.get_coro()
            if id(coroutine) in own or getattr(coroutine, "cr_running", False):
                continue
            state, seen = self._follow(coroutine, task)
            if route := self._labels.route_of(seen.codes, self._recorder):
                self._children.append((route, state, seen))

    def _follow(self, coroutine: Any, task: Any) -> tuple[str, _Seen]:
        chain = list(_chain(coroutine))
        state = self._labels.state_of([code for code, _ in chain])
        if state == "other" and _is_ready(task):
            state = "loop"
        return state, self._describe(chain[::-1])

    def _describe(self, stack: Stack) -> _Seen:
        site, detail = self._labels.describe(stack)
        codes = [code for code, _ in stack]
        return _Seen(codes, site, detail, bool(codes) and stack_labels.is_waiter(codes[0]))

    def record(self) -> None:
        """Join what was seen with what the kernel says of the threads, and count it."""
        if self._loop:
            self._record_loop()
        looked_at = self._record_threads()
        for one, waits, state, seen in self._suspended:
            if state not in IN_THREAD or waits.thread not in looked_at:
                self._record_suspended(one, waits, state, seen)
        for route, state, seen in self._children:
            if state not in ("in thread", "child"):
                self._add(route, state, "task", seen, "", False, self._seconds, 0.0)

    def _record_loop(self) -> None:
        """Record what the event loop's thread does, for a request or for none."""
        seen, tid = self._threads.get(self._loop), self._native.get(self._loop, 0)
        spent, (call, descriptor) = self._sampler.spent(tid), self._sampler.call(tid)
        if call == "futex":
            call = "lock" if seen is not None and seen.waits else "run"
        _add_to_clock(self._sampler.loop, self._seconds, spent, call, self._sampler._tally.setdefault(0, {}))
        known = self._sampler._supported and call != "idle"
        if seen is None or not (self._on_loop or known):
            return
        state, detail = _STATE_OF_CALL.get(call, "run"), seen.detail
        request, waits = self._on_loop or (None, None)
        if waits is not None:
            state, detail = waits.state(state, detail)
        if state == "io":
            detail = thread_states.peer_of(descriptor)
        route = self._route(request, seen)
        holds = waits is not None and waits.holds
        self._add(route, state, "loop", seen, detail, holds, self._seconds, spent.cpu_s)

    def _record_threads(self) -> set[int]:
        """Record the threads that carry requests, and what others compute; return those of requests."""
        looked_at: set[int] = set()
        read = 0
        for ident, seen in self._threads.items():
            request, waits = self._by_thread.get(ident, (None, None))
            route = self._route(request, seen)
            if ident == self._loop or (request is None and not seen.site and not route):
                continue  # idle, or of a library that runs beside the requests
            spent, call, descriptor = thread_states.Clock(0.0, 0.0), "lock", -1
            if not seen.waits:
                if read < PROCFS:
                    read, tid = read + 1, self._native.get(ident, 0)
                    spent, (call, descriptor) = self._sampler.spent(tid), self._sampler.call(tid)
                elif waits is None:
                    continue
                else:  # not read: taken to wait, if it is in a round trip
                    call = "poll" if waits.round_trip else "run"
            state, detail = _STATE_OF_CALL.get(call, "run"), seen.detail
            if state == "lock" and any(map(stack_labels.is_pool, seen.codes[:WAITS_DEPTH])):
                state = "pool"
            if waits is not None:
                state, detail = waits.state(state, detail)
            if state == "io":
                detail = thread_states.peer_of(descriptor)
            busy = "run" if state == "run" else "lock"
            tally = self._sampler._tally.setdefault(1, {})
            _add_to_clock(self._sampler.threads, self._seconds, spent, busy, tally)
            looked_at.add(ident)
            holds = waits is not None and waits.holds
            self._add(route, state, "thread", seen, detail, holds, self._seconds, spent.cpu_s)
        return looked_at

    def _record_suspended(self, one: RunningRequest, waits: _Waits, state: str, seen: _Seen) -> None:
        """Record a request whose coroutine did not run, and whose thread was not looked at."""
        if state == "in thread" and not (waits.pool or waits.round_trip):
            if not self._is_executor_full():
                return  # its thread was looked at
            state = "thread"
        state, detail = waits.state(state, "")
        if state != "child":
            seconds = self._weight * self._seconds
            self._add(self._recorder.route_of(one), state, "task", seen, detail, waits.holds, seconds, 0.0)

    def _is_executor_full(self) -> bool:
        """Return whether the loop's default executor has more work than threads."""
        executor = getattr(self._sampler._monitor.loop, "_default_executor", None)
        queue = getattr(executor, "_work_queue", None)
        return queue is not None and queue.qsize() > 0

    def _route(self, request: RunningRequest | None, seen: _Seen) -> int:
        if request is not None:
            return self._recorder.route_of(request)
        return self._labels.route_of(seen.codes, self._recorder) or probe_protocol.OTHER

    def _add(
        self,
        route: int,
        state: str,
        place: str,
        seen: _Seen,
        detail: str,
        holds: bool,
        seconds: float,
        cpu_s: float,
    ) -> None:
        key = (route, state, place, seen.site, detail, holds)
        found = self._sampler.records.get(key)
        if found is None and len(self._sampler.records) < RECORDS:
            found = self._sampler.records[key] = SampleRecord(*key)
        if found is not None:
            found.seconds += seconds
            found.cpu_s += cpu_s
        folded = f"{route};{state};{self._labels.fold(seen.codes)}"
        stacks = self._sampler.stacks
        if seen.codes and (folded in stacks or len(stacks) < STACKS):
            stacks[folded] = stacks.get(folded, 0.0) + seconds


def _add_to_clock(
    clock: ClockRecord, seconds: float, spent: thread_states.Clock, call: str, tally: dict[str, float]
) -> None:
    """Divide an interval: what the kernel counted, and the rest by what the thread was seen to do.

    A thread that is seen idle or blocked was so for the rest. One that wants the CPU when it is looked at was
    idle or blocked as often as in the last second, and waited for the interpreter lock for what is left.
    """
    kind = call if call in ("idle", "run") else "blocked"
    for name in ("idle", "run", "blocked"):
        tally[name] = 0.95 * tally.get(name, 0.0) + (seconds if name == kind else 0.0)
    seen = sum(tally.values()) or 1.0
    rest = max(seconds - spent.cpu_s - spent.runqueue_s, 0.0)
    idle, blocked = (rest if kind == name else 0.0 for name in ("idle", "blocked"))
    if kind == "run":
        idle, blocked = (seconds * tally[name] / seen for name in ("idle", "blocked"))
    gil = max(rest - idle - blocked, 0.0)
    whole = (idle + blocked + gil) or 1.0
    clock.wall_s += seconds
    clock.cpu_s += spent.cpu_s
    clock.runqueue_s += spent.runqueue_s
    clock.gil_s += rest * gil / whole
    clock.blocked_s += rest * blocked / whole


def _stack(frame: FrameType | None) -> Iterator[tuple[CodeType, FrameType]]:
    """Yield the code and frames of a running stack, the innermost first."""
    for _ in range(DEPTH):
        if frame is None:
            return
        yield frame.f_code, frame
        frame = frame.f_back


def _chain(coroutine: Any) -> Iterator[tuple[CodeType, FrameType]]:
    """Yield the code and frames of a suspended coroutine and of what it awaits, the outermost first."""
    for _ in range(DEPTH):
        if coroutine is None:
            return
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        frame = frame or getattr(coroutine, "ag_frame", None)
        if frame is not None:
            yield frame.f_code, frame
        awaited = getattr(coroutine, "cr_await", None)
        awaited = awaited if awaited is not None else getattr(coroutine, "gi_yieldfrom", None)
        coroutine = awaited if awaited is not None else getattr(coroutine, "ag_await", None)


def _is_ready(task: Any) -> bool:
    """Return whether a suspended asyncio task only waits for its loop."""
    return task is not None and hasattr(task, "_fut_waiter") and task._fut_waiter is None
