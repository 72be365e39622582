"""Evidence from inside the service during a trial. Values only.

Times are measured in the app's worker: waiting before the worker accepts a request is not included. "Slow"
requests are those slower than the median of their own route: comparing where their time went with where all
time went shows what makes the slow half slow. Requests that have not finished count with their time so far.
"""

from __future__ import annotations

import msgspec

REPETITIONS = 5  # executions of a statement from one line in one request that are an N+1 …
REPETITIONS_S = 0.020  # … when together they take longer than this,
REPETITIONS_SURE = 20  # or whatever they take

ROUND_TRIPS = frozenset(
    {"BEGIN", "COMMIT", "ROLLBACK", "CONNECT", "RESET"}
)  # database time that is no statement's


class RouteStats(msgspec.Struct, frozen=True, kw_only=True):
    """One route over all workers."""

    route: str  # "GET /api/orders"; "(other)" sums up all beyond the limit
    endpoint: str  # where the endpoint is defined, "shop/orders.py:40"; "" when unknown
    requests: int
    total_s: float
    slow_s: float  # total time of the slow requests
    slow_wait_s: float  # part of it spent waiting for a connection
    longest_s: float = 0.0  # the longest finished request
    unfinished: int = 0  # requests of a second or more without a response at the end of a trial
    unfinished_s: float = 0.0  # the longest of them, so far
    unfinished_waiting: int = 0  # of them, for a connection
    wait_s: float = 0.0  # of all requests, for a connection
    bytes: int = 0  # of all bodies


class StatementStats(msgspec.Struct, frozen=True, kw_only=True):
    """One statement, executed by one line of the user's code in one route."""

    route: str  # "" outside of any request
    fingerprint: str
    site: str  # "shop/orders.py:48"; "" when no line of the user's code was on the call stack
    database: str = ""  # postgresql, sqlite …; "" when unknown
    executions: int
    requests: int  # that executed it at least once
    executions_max: int  # in one request
    repeating_requests: int  # that executed it often enough to count as N+1
    repetitions_mean: float  # executions per repeating request
    total_s: float
    slow_s: float  # within slow requests
    mean_ms: float
    rows: int = 0  # returned or changed, where the driver tells


class PoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """The connection pools that one line of code created, over all workers."""

    site: str
    size: int
    max_overflow: int
    pools: int  # usually one per worker
    checked_out_max: int  # in one pool
    checkouts: int
    wait_count: int  # checkouts that waited
    timeouts: int
    held_s: float  # connection-seconds checked out: two connections for three seconds are six
    full_share: float  # share of the time without a free connection, mean over the pools
    wait_p95_ms: float  # over all checkouts, those without a wait and those that still wait included
    waiting: int = 0  # checkouts of a second or more that still waited at the end of a trial
    waiting_s: float = 0.0  # the longest of them, so far
    held_after: int = 0  # connections whose requests had ended, the most at once
    in_use: float = 1.0  # mean share of the connections that were checked out


class SampleStats(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests stood: request-seconds in one state, on one line. States: see ``probe.sampler``."""

    route: str  # "" for work of no request
    state: str
    place: str  # "loop", "thread" or "task"
    line: str  # the innermost of the user's, "shop/orders.py:48"; "" for none
    detail: str  # the kind of library work above that line, or the host
    holds: bool  # a connection of a pool
    seconds: float
    cpu_s: float  # that its thread used


class ClockStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a group of threads did with its wall time, in seconds."""

    wall_s: float
    cpu_s: float
    runqueue_s: float
    gil_s: float
    blocked_s: float

    @property
    def busy_share(self) -> float:
        """Share of the time in which the threads were not idle."""
        busy = self.cpu_s + self.runqueue_s + self.gil_s + self.blocked_s
        return busy / self.wall_s if self.wall_s else 0.0


class MemoryStats(msgspec.Struct, frozen=True, kw_only=True):
    """The pauses of the interpreters' garbage collectors."""

    pauses: int
    pause_s: float
    longest_s: float


class LoopStats(msgspec.Struct, frozen=True, kw_only=True):
    """Event loop lag; one long block counts as often as timers were due in it."""

    ticks: int
    p50_ms: float
    p95_ms: float
    max_ms: float
    blockers: tuple[tuple[str, int], ...]  # lines that blocked the loop and their samples, most first
    stuck_s: float = 0.0  # a callback was due for so long and had not run


class ThreadStats(msgspec.Struct, frozen=True, kw_only=True):
    """The worker threads in which sync endpoints run."""

    total: int  # per worker
    busy_max: int
    waiting_max: int  # requests that waited for a thread
    waiting_share: float  # of the time


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the probes of all workers recorded since the last reset."""

    seconds: float
    workers: int
    seen: dict[str, bool]  # "requests", "statements", "pool", "event loop", "threads"
    routes: tuple[RouteStats, ...] = ()
    statements: tuple[StatementStats, ...] = ()
    calls: tuple[
        StatementStats, ...
    ] = ()  # to other services: "HTTP api.pay.example", with ": 503" for those
    pools: tuple[PoolStats, ...] = ()
    loop: LoopStats | None = None
    threads: ThreadStats | None = None
    stalled_s: float = 0.0  # no request had finished for so long at the end of a trial, while some ran
    unfinished_at: tuple[tuple[str, int], ...] = ()  # lines on which unfinished requests stood, most first
    pool_kinds: tuple[str, ...] = ()  # classes of the pools that opened connections
    dropped: int = 0  # requests that did not fit into the workers' buffers
    samples: tuple[SampleStats, ...] = ()  # the most frequent first
    stacks: tuple[tuple[str, float], ...] = ()  # "GET /a;run;main:app;main:load", seconds
    loop_clock: ClockStats | None = None  # the busiest event loop; None where the system does not tell
    thread_clock: ClockStats | None = None  # threads that carry requests, of the busiest worker
    memory: MemoryStats | None = None

    @property
    def requests(self) -> int:
        """Number of requests, dropped ones not included."""
        return sum(route.requests for route in self.routes)

    @property
    def unfinished(self) -> int:
        """Number of requests that had not finished."""
        return sum(route.unfinished for route in self.routes)

    @property
    def slow_s(self) -> float:
        """Total time of the slow requests of every route."""
        return sum(route.slow_s for route in self.routes)


def is_repetition(executions: int, seconds: float) -> bool:
    """Return whether one line's executions of a statement in a request are an N+1.

    They are from 20 on, and from 5 on when they take more than 20 ms together.
    """
    return executions >= REPETITIONS_SURE or (executions >= REPETITIONS and seconds > REPETITIONS_S)
