"""What travels from a worker's probe to the collector: msgpack frames, each after its length.

Structs are arrays on the wire. Texts (routes, statements, call sites) travel once a connection and are
numbers afterwards. Times are seconds; ``started`` is ``time.perf_counter()``, which on Linux and macOS is one
clock for all processes of a machine.
"""

from __future__ import annotations

import struct

import msgspec

LENGTH = struct.Struct("!I")
FRAME_LIMIT = 32 * 1024 * 1024  # bytes; a longer frame is not one of ours, the connection is closed
OTHER = 0  # the number of the route or statement that stands for all beyond the limit

# statement number -> [executions, seconds, rows]
Executions = dict[int, list[float]]


class Request(msgspec.Struct, array_like=True):
    """One request, filled in while it runs."""

    started: float = 0.0
    duration_s: float = -1.0  # until the last byte was handed to the server; negative while it runs
    route: int = OTHER
    status: int = 0  # 0: the app ended without an answer
    pool_wait_s: float = 0.0
    executions: Executions = msgspec.field(default_factory=dict)


class RouteText(msgspec.Struct, array_like=True, frozen=True):
    """A route as it is shown: ``GET /api/orders``, and where its endpoint is defined."""

    number: int
    method: str
    path: str
    endpoint: str = ""


class StatementText(msgspec.Struct, array_like=True, frozen=True):
    """A statement at a call site. ``sql`` is the driver's text, with placeholders and without parameters."""

    number: int
    fingerprint: str
    site: str
    function: str
    sql: str


class PoolState(msgspec.Struct, array_like=True):
    """One connection pool of one worker since its last frame."""

    number: int
    dialect: str
    site: str  # where the engine was made
    size: int
    max_overflow: int  # -1: no limit
    checked_out: int  # the most at once
    checkouts: int
    timeouts: int
    full_s: float  # every connection taken, or promised to someone who waits
    held_s: float  # connections taken, added up: two for three seconds are six
    waits_s: list[float] = msgspec.field(default_factory=list)  # checkouts that had to wait, a sample
    waited: int = 0  # checkouts that had to wait, all of them


class Hello(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """The first frame of a connection."""

    pid: int
    instance: str


class Batch(msgspec.Struct, array_like=True, tag=True):
    """What a worker saw in about a quarter of a second."""

    seconds: float
    dropped: int  # requests not sent since the last frame, for want of room
    sqlalchemy: bool  # a statement or a pool was seen, ever
    routes: list[RouteText] = msgspec.field(default_factory=list)
    statements: list[StatementText] = msgspec.field(default_factory=list)
    requests: list[Request] = msgspec.field(default_factory=list)
    outside: Executions = msgspec.field(default_factory=dict)  # statements outside of any request
    pools: list[PoolState] = msgspec.field(default_factory=list)
    lags_s: list[float] = msgspec.field(default_factory=list)
    blockers: dict[str, int] = msgspec.field(default_factory=dict)  # line on which the loop stood still
    threads_busy: int = -1  # the most at once; -1: not seen
    threads_total: int = 0
    threads_waiting: int = 0


def pack(message: Hello | Batch) -> bytes:
    """The message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body
