"""A running trial: its clock, its arrival log, its answers and the arrivals that users are sending."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, process_time

from tenfold.measure.load import histogram
from tenfold.measure.load.answers import UNANSWERED, AnswerCounts
from tenfold.measure.load.arrivals import ArrivalLog, ArrivalResult, request_result
from tenfold.measure.load.generator_protocol import TrialDone
from tenfold.measure.load.locust.stalls import StallWatch
from tenfold.measure.trial import TASK_LIMIT_S, Block, GeneratorHealth, Stalls

FLOW_SLACK_S = 0.001
LEAD_S = 0.02  # between starting the clock and the first possible due time
TICK_S = 0.05  # between two looks at the arrivals
LEAST_TASKS = 5  # fewer do not tell how long tasks take
_STAT = Path("/proc/stat")


class ActiveArrival:
    """An arrival that a user is sending: its requests so far and the one under way."""

    __slots__ = (
        "_first_ms",
        "_notes_sending",
        "_number",
        "_requests",
        "_spans",
        "_started_s",
        "_trial",
        "_waited_ms",
        "is_over",
        "is_stopped",
        "request",
        "sent_s",
        "task",
    )

    def __init__(self, trial: TrialRun, number: int, waited_ms: float, *, notes_sending: bool) -> None:
        self._notes_sending = notes_sending
        self.task = ""  # the newest task of the locustfile that it ran, as "Visitor.browse"
        self.is_over = False
        self.is_stopped = False  # its trial is over: the task may send no more
        self._started_s = trial.now()
        self._first_ms = 0.0
        self._spans: list[tuple[float, float]] = []  # start and end of each request, on the trial's clock
        self._trial = trial
        self._number = number
        self._waited_ms = waited_ms  # from the due time until the user started it
        self._requests = 0
        self.request: tuple[str, str] | None = None  # method and name of the request that is under way
        self.sent_s = 0.0

    def send(self, method: str, name: str) -> None:
        """Note that a request is sent now."""
        self.request, self.sent_s = (method, name), self._trial.now()
        self._trial.arrivals.note_sending(self._number, under_way=True)

    def end_request(self) -> None:
        """Note that the request under way has ended."""
        self.request = None
        self._trial.arrivals.note_sending(self._number, under_way=False)

    @property
    def is_left_over(self) -> bool:
        """True when its trial is over and a request of it is, as far as is known, still under way."""
        return self._trial.is_closed and (self.request is not None or not self._notes_sending)

    @property
    def is_unfinished(self) -> bool:
        """True when its trial is over and its task goes on without a request under way."""
        return self._trial.is_closed and self.request is None and self._notes_sending

    def record(
        self, method: str, name: str, *, status: int, raw_ms: float, size: int, failure: str | None
    ) -> None:
        """Record an answer.

        Args:
            method: the request's method.
            name: the endpoint, as Locust groups it.
            status: 0 when there was no answer at all.
            raw_ms: latency from the sending, as the client measured it.
            size: bytes of the answer.
            failure: the error message, None for a success.
        """
        trial = self._trial
        corrected_ms = self._corrected(raw_ms)
        result = request_result(
            status, failed=failure is not None, corrected_ms=corrected_ms, slow_ms=trial.arrivals.slow_ms
        )
        if not self._requests:
            self._first_ms = raw_ms
        self._requests += 1
        now = trial.now()
        self._spans.append((now - raw_ms / 1000, now))
        trial.arrivals.record_answer(self._number, result)
        if not trial.arrivals.is_counted(self._number):
            return
        if result >= ArrivalResult.REFUSED:
            trial.answers.add_error(failure or f"{method} {name} answered {status}")
        trial.answers.endpoint(method, name).add(status, result, corrected_ms, raw_ms, size)

    def is_flow(self, raw_ms: float) -> bool:
        """Return whether an event that took so long until now contains requests that are recorded already."""
        now = self._trial.now()
        start = now - raw_ms / 1000 - FLOW_SLACK_S
        return any(start <= began and ended < now - FLOW_SLACK_S for began, ended in self._spans)

    def is_going_on(self, now: float) -> bool:
        """Return whether its task goes on by itself: it does not only wait for an answer."""
        if self.request is None and self._notes_sending:
            return True
        if not self._requests:
            return False
        return self.request is None or now - self.sent_s < self._trial.arrivals.slow_s

    def is_unended(self, now: float) -> bool:
        """Return whether its task goes on for so long that it seems not to end."""
        return self.is_going_on(now) and now - self._started_s > TASK_LIMIT_S - 1

    def record_exception(self, message: str) -> None:
        """Fail the arrival: its task raised."""
        self._requests += 1  # it did try: not an arrival without a request
        self._trial.arrivals.worsen(self._number, ArrivalResult.FAILED)
        self._trial.answers.add_error(message)

    def mark_if_slow(self, now: float) -> None:
        """Mark the arrival slow when the request under way has taken too long already."""
        if self.request and self._corrected((now - self.sent_s) * 1000) > self._trial.arrivals.slow_ms:
            self._trial.arrivals.worsen(self._number, ArrivalResult.SLOW)

    def record_unanswered(self) -> None:
        """Record the request under way at the end of the trial: its latency is at least what it is now."""
        if self.request is None or not self._trial.arrivals.is_counted(self._number):
            return
        raw_ms = (self._trial.now() - self.sent_s) * 1000
        counts = self._trial.answers.endpoint(*self.request)
        counts.add(UNANSWERED, ArrivalResult.SLOW, self._corrected(raw_ms), raw_ms, 0)

    def finish(self) -> None:
        """End the arrival: the user's task is over."""
        trial = self._trial
        self.is_over = True
        if not self._requests and trial.arrivals.is_counted(self._number):
            trial.silent[self.task] += 1
        if trial.arrivals.is_good(self._number):
            trial.task_times_s.append(max(trial.now() - self._started_s - self._first_ms / 1000, 0.0))
        trial.active.discard(self)
        trial.arrivals.finish(self._number, trial.now())

    def _corrected(self, raw_ms: float) -> float:
        return raw_ms if self._requests else raw_ms + self._waited_ms


class TrialRun:
    """One trial under way. Its clock starts with :meth:`start_clock`.

    Args:
        folder: of the locustfile, for lines of it that block.
    """

    def __init__(self, arrivals: ArrivalLog, *, folder: Path | None = None) -> None:
        self.arrivals = arrivals
        self._watch = StallWatch(folder)
        self._stalls: Stalls | None = None
        self.answers = AnswerCounts()
        self.active: set[ActiveArrival] = set()
        self.silent: Counter[str] = Counter()  # arrivals without a request, by task
        self.task_times_s: array[float] = array("d")  # of good arrivals, from the first answer to the end
        self.is_closed = False
        self._zero = perf_counter()
        self._cpu_s = self._wall_s = self._steal = 0.0
        self._ticks = (0, 0)

    def now(self) -> float:
        """Seconds on the trial's clock; negative before the load begins."""
        return perf_counter() - self._zero

    def start_clock(self, *, lead_s: float = 0.0) -> None:
        """Let the load begin in ``LEAD_S``, and what is counted ``lead_s`` later."""
        self._zero = perf_counter() + LEAD_S + lead_s
        self._cpu_s, self._wall_s, self._ticks = process_time(), time.monotonic(), _cpu_ticks()
        self._watch.start()

    def begin(self, arrival: int, now: float, *, free: bool, notes_sending: bool) -> ActiveArrival:
        """Start an arrival that a user has taken over.

        Args:
            arrival: its number.
            now: seconds on the trial's clock.
            free: a user was idle when it was due.
            notes_sending: the user's client tells when it sends; otherwise only answers are known, and the
                arrival counts as in flight until its task is over.
        """
        self.arrivals.start(arrival, now, free=free, sending=not notes_sending)
        waited_ms = (now - self.arrivals.due[arrival]) * 1000
        active = ActiveArrival(self, arrival, waited_ms, notes_sending=notes_sending)
        self.active.add(active)
        return active

    def drop_expired(self, arrival: int) -> bool:
        """Drop an arrival that waited too long for a user: it took at least as long as it waited."""
        now = self.now()
        if not self.arrivals.is_expired(arrival, now):
            return False
        self.arrivals.drop(arrival, now)
        if self.arrivals.is_counted(arrival):
            self.answers.unsent_ms.append((now - self.arrivals.due[arrival]) * 1000)
        return True

    def final_blocks(self) -> list[Block]:
        """Mark what is too slow already, and return the blocks that became final since the last call."""
        now = self.now()
        for active in list(self.active):
            active.mark_if_slow(now)
        return self.arrivals.final_blocks(now)

    def end_load(self) -> None:
        """Stop counting the generator's own CPU time: the load is over."""
        self._cpu_s = process_time() - self._cpu_s
        self._wall_s = time.monotonic() - self._wall_s
        total, stolen = _cpu_ticks()
        passed = total - self._ticks[0]
        self._steal = (stolen - self._ticks[1]) / passed if passed > 0 else 0.0
        self._stalls = self._watch.stop()

    @property
    def task_s(self) -> float | None:
        """What a task takes beyond its first answer, 95th percentile; None when too few ended."""
        times = sorted(self.task_times_s)
        return times[int(0.95 * len(times))] if len(times) >= LEAST_TASKS else None

    def close(
        self, *, users: int, logins: int, login_errors: Mapping[str, int], task_s: float = 0.0
    ) -> TrialDone:
        """Record unanswered requests, and sum up. Later answers are in no trial."""
        unended = Counter(active.task for active in self.active if active.is_unended(self.now()))
        arrivals, answers = self.arrivals, self.answers
        settled_s = self.now() if arrivals.unfinished else arrivals.last_over_s
        unanswered = [active for active in self.active if active.request]
        for active in unanswered:
            active.record_unanswered()
        self.active.clear()
        self.is_closed = True
        notes = {
            "logins": logins,
            "logins failed": sum(login_errors.values()),
            "requests unanswered at the end": len(unanswered),
        }
        return TrialDone(
            seconds=arrivals.horizon_s,
            settled_s=max(0.0, settled_s - arrivals.horizon_s),
            generator=self._health(),
            endpoints=answers.summaries(),
            corrected=histogram.encode(answers.corrected_ms()),
            raw=histogram.encode(answers.raw_ms()),
            users=users,
            requests=answers.requests,
            errors=dict(answers.errors.most_common())
            | {f"login: {message}": count for message, count in login_errors.items()},
            notes={what: count for what, count in notes.items() if count},
            silent=dict(self.silent.most_common()),
            unended=dict(unended.most_common()),
            task_s=task_s,
        )

    def _health(self) -> GeneratorHealth:
        offered = self.arrivals.counted
        return GeneratorHealth(
            cpu_share=self._cpu_s / self._wall_s if self._wall_s else 0.0,
            late_share=self.arrivals.late_counted / offered if offered else 0.0,
            lag_p99_ms=_p99(self.arrivals.lags_s) * 1000,
            steal_share=self._steal,
            stalls=self._stalls,
        )


def _p99(values: array[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0


def _cpu_ticks() -> tuple[int, int]:
    """Ticks of all CPUs together, and those taken by other machines on the same host; zeros without Linux."""
    try:
        with _STAT.open() as stat:
            ticks = [int(field) for field in stat.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(ticks), ticks[7] if len(ticks) > 7 else 0
