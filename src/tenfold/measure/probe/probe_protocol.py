"""The protocol between a worker's probe and the collector: length-prefixed JSON, one hello, then batches.

Texts (routes, statements, call sites) are sent once per connection and replaced by numbers afterwards. Times
are seconds; ``started`` is ``time.perf_counter()``, which on Linux and macOS is one clock for all processes
of a machine. The service's Python needs nothing but its standard library for this.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

LENGTH = struct.Struct("!I")
TRACE_MEMORY, STOP_TRACING = b"T", b"S"  # what the collector may send
FRAME_LIMIT = 32 * 1024 * 1024  # bytes; the collector closes the connection on a longer frame
UNFINISHED_S = 1.0  # age from which a running request is reported
UNFINISHED = 200  # requests of a route whose starts are reported
HTTP = "http"  # the kind of database that another service is
OTHER = 0  # number of the route or statement that sums up all beyond the limit

# statement number → [executions, seconds, rows]
Executions = dict[int, list[float]]


@dataclass(slots=True)
class RequestRecord:
    """One request, filled in while it runs. What begins with ``_`` is not sent."""

    started: float = 0.0
    duration_s: float = -1.0  # until the last byte was passed to the server; negative while it runs
    route: int = OTHER
    pool_wait_s: float = 0.0
    executions: Executions = field(default_factory=dict)
    waits_since: float = 0.0  # for a connection; 0 while it does not wait
    bytes: int = 0  # of the body
    _holds: int = 0  # connections checked out now
    _round_trip: str = ""  # what it waits for now: "db" or the host of an HTTP call
    _responds: bool = False  # its first byte was passed to the server
    _thread: int = 0  # in which it holds a connection or waits for a response; 0 for neither


@dataclass(slots=True)
class SampleRecord:
    """Where requests of one route stood when they were sampled; see ``sampler``."""

    route: int
    state: str
    place: str  # "loop", "thread" or "task": a suspended coroutine
    line: str
    detail: str
    holds: bool  # a connection of a pool
    seconds: float = 0.0
    cpu_s: float = 0.0


@dataclass(slots=True)
class ClockRecord:
    """Wall time of a group of threads, in seconds; see ``thread_states``."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    runqueue_s: float = 0.0
    gil_s: float = 0.0
    blocked_s: float = 0.0


@dataclass(slots=True)
class UnfinishedRecord:
    """The requests of one route that have run for a second or more without a response."""

    route: int
    count: int = 0
    longest_s: float = 0.0
    started: list[float] = field(default_factory=list)  # of at most UNFINISHED of them
    waiting: int = 0  # of them, for a connection
    wait_s: float = 0.0  # their time of waiting for a connection, all together


@dataclass(slots=True, frozen=True)
class RouteText:
    """A route's texts: method, template (``/api/orders``) and where its endpoint is defined."""

    number: int
    method: str
    path: str
    endpoint: str = ""


@dataclass(slots=True, frozen=True)
class StatementText:
    """A statement at a call site. ``sql`` is the driver's text, with placeholders and without parameters."""

    number: int
    fingerprint: str
    site: str
    sql: str
    database: str = ""  # postgresql, sqlite …; empty where that is unknown


@dataclass(slots=True)
class PoolRecord:
    """One connection pool of one worker since its last frame."""

    number: int
    site: str  # where the engine was created
    size: int
    max_overflow: int  # -1: no limit
    checked_out_max: int
    checkouts: int
    timeouts: int
    full_s: float  # no connection was free, or a waiter was about to get the one that was
    held_s: float  # connection-seconds checked out: two connections for three seconds are six
    waits_s: list[float] = field(default_factory=list)  # a sample of the waits
    wait_count: int = 0  # checkouts that waited, all of them
    waiting: int = 0  # checkouts that have waited for a second or more and still wait
    waiting_s: float = 0.0  # the longest of them, so far
    held_after: int = 0  # connections whose requests have ended


@dataclass(slots=True, frozen=True)
class Hello:
    """The first frame of a connection."""

    pid: int
    instance: str


@dataclass(slots=True)
class Batch:
    """A worker's records of about a quarter of a second."""

    seconds: float
    dropped: int  # requests since the last frame for which the buffer was full
    has_statements: bool  # a statement or a pool has been recorded, ever
    routes: list[RouteText] = field(default_factory=list)
    statements: list[StatementText] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    outside: Executions = field(default_factory=dict)  # statements outside of any request
    pools: list[PoolRecord] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    blockers: dict[str, int] = field(default_factory=dict)  # line that blocked the loop → samples
    threads_busy: int = -1  # most at once; -1: not seen
    threads_total: int = 0
    threads_waiting: int = 0
    unfinished: list[UnfinishedRecord] = field(default_factory=list)
    unfinished_at: dict[str, int] = field(default_factory=dict)  # lines on which they stand: requests
    loop_late_s: float = 0.0  # a callback is due for so long and has not run
    pool_kinds: list[str] = field(default_factory=list)  # classes of pools that opened a connection
    samples: list[SampleRecord] = field(default_factory=list)
    stacks: dict[str, float] = field(default_factory=dict)  # "GET /a;run;app.main;app.load" → seconds
    loop: ClockRecord | None = None  # the event loop's thread; None where the system does not tell
    threads: ClockRecord | None = None  # threads that carry requests
    gc_pauses: int = 0
    gc_pause_s: float = 0.0
    gc_longest_s: float = 0.0
    python_blocks: int = 0  # memory blocks that the interpreter has allocated, now
    kept: dict[str, int] = field(default_factory=dict)  # line → bytes that it allocated and that are in use


def pack(message: Hello | Batch) -> bytes:
    """Encode a message with its length prefix."""
    body = json.dumps(message, default=_fields, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__ if name[0] != "_"}
