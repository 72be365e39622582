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
from typing import Any

from tenfold.measure.probe import probe_protocol, stack_labels, thread_states
from tenfold.measure.probe.eventloop import LoopMonitor
from tenfold.measure.probe.probe_protocol import ClockRecord, RequestRecord, SampleRecord
from tenfold.measure.probe.recorder import Recorder, RunningRequest

SUSPENDED = 50  # requests looked at in one sample, at random
THREADS = 64
PROCFS = 16  # threads whose state is read in one sample
RECORDS = 2_000  # kept between two frames
STACKS = 400
DEPTH = 80
MOST_CPU = 0.02  # of one core, for all of this
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


class _Look:
    """One look at all requests and threads."""

    def __init__(self, sampler: StackSampler, seconds: float) -> None:
        self._sampler, self._seconds = sampler, seconds
        self._recorder, self._monitor = sampler._recorder, sampler._monitor
        self._labels = sampler._labels
        self._frames = sys._current_frames()
        self._seen: set[int] = set()  # threads

    def record(self) -> None:
        native = {one.ident or 0: one.native_id or 0 for one in threading.enumerate()}
        native.update(self._recorder.native_ids)
        requests = self._recorder.running()
        loop = self._monitor.thread if not self._monitor.idle else 0
        loop_call, loop_clock = "idle", thread_states.Clock(0.0, 0.0)
        if loop:
            loop_call, loop_clock = self._look_at_loop(native.get(loop, 0))
        on_loop = next((one for one in requests if getattr(one.coroutine, "cr_running", False)), None)
        if loop and (on_loop is not None or (self._sampler._supported and loop_call != "idle")):
            self._record_loop(loop, loop_call, on_loop, loop_clock.cpu_s, native.get(loop, 0))
        self._record_threads(loop, native, requests)
        suspended = [one for one in requests if one is not on_loop and not self._is_in_thread(one)]
        weight = max(len(suspended) / SUSPENDED, 1.0)
        if len(suspended) > SUSPENDED:
            suspended = self._sampler._random.sample(suspended, SUSPENDED)
        children = False
        for one in suspended:
            children |= self._record_suspended(one, weight)
        if children:
            self._record_children()

    def _look_at_loop(self, tid: int) -> tuple[str, thread_states.Clock]:
        """Add the interval to the clock of the event loop's thread; return what it does now."""
        spent, (call, _) = self._sampler.spent(tid), self._sampler.call(tid)
        if call == "futex":
            frame = self._frames.get(self._monitor.thread)
            call = "lock" if frame is not None and stack_labels.is_waiter(frame.f_code) else "run"
        _add_to_clock(self._sampler.loop, self._seconds, spent, call, self._sampler._tally.setdefault(0, {}))
        return call, spent

    def _record_loop(
        self, thread: int, call: str, request: RunningRequest | None, cpu_s: float, tid: int
    ) -> None:
        """Record what the event loop's thread runs now, of a request or of none."""
        stack = list(_stack(self._frames.get(thread)))
        state = _STATE_OF_CALL.get(call, "run")
        site, detail = self._labels.describe(stack)
        record = request.request if request is not None else None
        if record is not None and state != "run":
            state, detail = _round_trip(record, state, detail)
        if state == "io" and not detail:
            detail = thread_states.peer_of(self._sampler.call(tid)[1])
        route = self._route(request, stack)
        self._add(route, state, "loop", site, detail, record, self._seconds, cpu_s)
        self._add_stack(route, state, stack)

    def _record_threads(self, loop: int, native: dict[int, int], requests: list[RunningRequest]) -> None:
        """Record the threads that carry requests, and what others compute."""
        mine = threading.get_ident()
        by_thread = {one.thread or one.request._thread: one for one in requests}
        read = 0
        for ident, frame in list(self._frames.items())[:THREADS]:
            if ident in (loop, mine):
                continue
            stack = list(_stack(frame))
            request = by_thread.get(ident)
            site, detail = self._labels.describe(stack)
            if request is None and not site and not self._labels.route_of(stack, self._recorder):
                continue  # idle, or of a library that runs beside the requests
            spent, call, descriptor = thread_states.Clock(0.0, 0.0), "lock", -1
            if not stack_labels.is_waiter(frame.f_code):
                if read < PROCFS:
                    read, tid = read + 1, native.get(ident, 0)
                    spent, (call, descriptor) = self._sampler.spent(tid), self._sampler.call(tid)
                elif request is None:
                    continue
                else:  # not read: taken to wait, if it is in a round trip
                    call = "poll" if request.request._round_trip else "run"
            record = request.request if request is not None else None
            state = _STATE_OF_CALL.get(call, "run")
            if record is not None:
                state, detail = _round_trip(record, state, detail)
            if state == "io" and not detail:
                detail = thread_states.peer_of(descriptor)
            tally = self._sampler._tally.setdefault(1, {})
            busy = "run" if state == "run" else "wait"
            _add_to_clock(self._sampler.threads, self._seconds, spent, busy, tally)
            self._seen.add(ident)
            route = self._route(request, stack)
            self._add(route, state, "thread", site, detail, record, self._seconds, spent.cpu_s)
            self._add_stack(route, state, stack)

    def _record_suspended(self, one: RunningRequest, weight: float) -> bool:
        """Record a request whose coroutine does not run now; return whether a child task carries it on."""
        record = one.request
        seconds = weight * self._seconds
        chain = list(_chain(one.coroutine))
        site, detail = self._labels.describe(list(reversed(chain)))[0], ""
        state = self._labels.state_of([item[0] for item in chain])
        if record.waits_since:
            state, detail = "pool", ""
        elif record._round_trip:
            state, detail = _round_trip(record, state, detail)
        elif state == "in thread":
            if not self._queued_in_executor():
                return False  # its thread was looked at
            state = "thread"
        elif state == "child":
            return True
        elif state == "other" and _is_ready(one.task):
            state = "loop"
        self._add(self._route(one, []), state, "task", site, detail, record, seconds, 0.0)
        self._add_stack(self._route(one, []), state, list(reversed(chain)), seconds)
        return False

    def _is_in_thread(self, one: RunningRequest) -> bool:
        """Return whether the request's thread was looked at."""
        return bool(one.thread) or (one.request._thread or -1) in self._seen

    def _queued_in_executor(self) -> bool:
        """Return whether the loop's default executor has more work than threads."""
        executor = getattr(self._monitor.loop, "_default_executor", None)
        queue = getattr(executor, "_work_queue", None)
        return queue is not None and queue.qsize() > 0

    def _record_children(self) -> None:
        """Record the tasks that middlewares started for requests."""
        own = {id(one.coroutine) for one in self._recorder.running()}
        for task in list(asyncio.all_tasks(self._monitor.loop))[:TASKS]:
            coroutine = task.get_coro()
            if id(coroutine) in own or getattr(coroutine, "cr_running", False):
                continue
            chain = list(_chain(coroutine))
            route = self._labels.route_of(list(reversed(chain)), self._recorder)
            if not route:
                continue
            site, _ = self._labels.describe(list(reversed(chain)))
            state = self._labels.state_of([item[0] for item in chain])
            if state == "other" and _is_ready(task):
                state = "loop"
            if state != "in thread":
                self._add(route, state, "task", site, "", None, self._seconds, 0.0)

    def _route(self, request: RunningRequest | None, stack: list[tuple[CodeType, FrameType]]) -> int:
        if request is not None:
            return self._recorder.route_of(request)
        return self._labels.route_of(stack, self._recorder) or probe_protocol.OTHER

    def _add(
        self,
        route: int,
        state: str,
        place: str,
        line: str,
        detail: str,
        record: RequestRecord | None,
        seconds: float,
        cpu_s: float,
    ) -> None:
        holds = record is not None and record._holds > 0
        key = (route, state, place, line, detail, holds)
        found = self._sampler.records.get(key)
        if found is None:
            if len(self._sampler.records) >= RECORDS:
                return
            found = self._sampler.records[key] = SampleRecord(*key)
        found.seconds += seconds
        found.cpu_s += cpu_s

    def _add_stack(
        self, route: int, state: str, stack: list[tuple[CodeType, FrameType]], seconds: float | None = None
    ) -> None:
        if not stack:
            return
        folded = f"{route};{state};{self._labels.fold(stack)}"
        stacks = self._sampler.stacks
        if folded in stacks or len(stacks) < STACKS:
            stacks[folded] = stacks.get(folded, 0.0) + (self._seconds if seconds is None else seconds)


def _round_trip(record: RequestRecord, state: str, detail: str) -> tuple[str, str]:
    """Return the state of a request that waits for a connection, its database or an HTTP call."""
    if record.waits_since:
        return "pool", ""
    if record._round_trip == "db":
        return ("db", "") if state != "run" else (state, detail)
    if record._round_trip:
        return ("http", record._round_trip) if state != "run" else (state, detail)
    return state, detail


def _add_to_clock(
    clock: ClockRecord, seconds: float, spent: thread_states.Clock, call: str, tally: dict[str, float]
) -> None:
    """Divide an interval: what the kernel counted, and the rest by what the thread was seen to do.

    A thread that was seen idle in half of the samples and used half of the time did not wait for the
    interpreter lock; one that was never seen idle or blocked and used half of the time did, for the rest.
    """
    kind = call if call in ("idle", "run") else "blocked"
    for name in ("idle", "run", "blocked"):
        tally[name] = 0.95 * tally.get(name, 0.0) + (seconds if name == kind else 0.0)
    seen = sum(tally.values()) or 1.0
    rest = max(seconds - spent.cpu_s - spent.runqueue_s, 0.0)
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
