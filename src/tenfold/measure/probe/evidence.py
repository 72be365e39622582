"""What was seen inside the service during a trial. Values only.

Times are those that the app's worker measured: what a request waited for before its worker took it is not in
them. "Slow" are the requests slower than the running median of their own route: comparing where their time
went with where all time went shows what makes the slow half slow.
"""

from __future__ import annotations

import msgspec

REPEATS = 5  # a statement that often from one line in one request is a repetition …
REPEATS_S = 0.020  # … when it took this long together,
REPEATS_SURE = 20  # or came this often

ROUND_TRIPS = frozenset({"COMMIT", "ROLLBACK", "CONNECT"})  # time in the database, but no statements


class RouteUse(msgspec.Struct, frozen=True, kw_only=True):
    """One route over all workers. A request without an answer counts as an error."""

    route: str  # "GET /api/orders"; "(other)" stands for all beyond the limit
    endpoint: str  # "shop/orders.py:40" where the endpoint is defined, "" when unknown
    requests: int
    errors: int  # 5xx, and no answer
    total_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    database_share: float  # of the requests' time; at most 1, although concurrent statements add up to more
    pool_wait_share: float
    pool_wait_max_ms: float
    statements_mean: float  # a request, without COMMIT, ROLLBACK and connecting
    statements_max: int
    slow_s: float  # time of the slow requests
    slow_wait_s: float  # of it, waiting for a connection


class StatementUse(msgspec.Struct, frozen=True, kw_only=True):
    """One statement from one line of the user's code in one route."""

    route: str  # "" outside of any request
    fingerprint: str
    site: str  # "shop/orders.py:48", "" when no line of the user's code was on the way to it
    function: str
    executions: int
    requests: int  # in which it came at least once
    request_max: int  # most executions in one request
    repeating: int  # requests in which it was repeated enough to count as N+1
    repeats_mean: float  # executions in those
    total_s: float
    slow_s: float  # of the slow requests' time
    mean_ms: float
    max_ms: float  # the longest mean within one request
    rows_mean: float  # an execution, as the driver told


class PoolUse(msgspec.Struct, frozen=True, kw_only=True):
    """The pools that one line of code made, over all workers."""

    dialect: str
    site: str
    size: int
    max_overflow: int
    pools: int  # one a worker, as a rule
    checked_out_max: int  # in one pool
    checkouts: int
    waited: int  # checkouts that had to wait
    timeouts: int
    held_s: float  # connections taken, added up: two for three seconds are six
    full_share: float  # of the time, mean over the pools
    wait_p50_ms: float  # over all checkouts, those without a wait included
    wait_p95_ms: float
    wait_max_ms: float


class LoopUse(msgspec.Struct, frozen=True, kw_only=True):
    """How late the event loops ran what was due; a long stop counts as often as timers were due in it."""

    ticks: int
    p50_ms: float
    p95_ms: float
    max_ms: float
    blockers: tuple[
        tuple[str, int], ...
    ]  # lines on which a late loop stood, and how often; the commonest first


class ThreadUse(msgspec.Struct, frozen=True, kw_only=True):
    """The threads in which sync endpoints run."""

    total: int  # a worker
    busy_max: int
    waiting_max: int  # requests that waited for a thread
    waiting_share: float  # of the time


class SlowRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One of the slowest requests, with its dearest statements."""

    route: str
    status: int
    duration_ms: float
    database_ms: float
    pool_wait_ms: float
    statements: tuple[tuple[str, str, int, float], ...]  # fingerprint, site, executions, ms


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the probes of all workers saw since the last reset."""

    seconds: float
    workers: int
    seen: dict[str, bool]  # "requests", "sqlalchemy", "pool", "event loop", "threads"
    routes: tuple[RouteUse, ...] = ()
    statements: tuple[StatementUse, ...] = ()
    pools: tuple[PoolUse, ...] = ()
    loop: LoopUse | None = None
    threads: ThreadUse | None = None
    slowest: tuple[SlowRequest, ...] = ()
    dropped: int = 0  # requests that the workers could not send

    @property
    def requests(self) -> int:
        """Requests seen, dropped ones not included."""
        return sum(route.requests for route in self.routes)

    @property
    def total_s(self) -> float:
        """Time spent in requests."""
        return sum(route.total_s for route in self.routes)

    @property
    def slow_s(self) -> float:
        """Time spent in the slow requests of every route."""
        return sum(route.slow_s for route in self.routes)


def repeats(executions: int, seconds: float) -> bool:
    """Whether a statement from one line in one request is an N+1: ≥ 5 times and > 20 ms, or ≥ 20 times."""
    return executions >= REPEATS_SURE or (executions >= REPEATS and seconds > REPEATS_S)
