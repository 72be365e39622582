"""Windows of a measurement, built from named parts: a healthy service, changed in one respect."""

from __future__ import annotations

from typing import Any

import msgspec

from tenfold.measure.diagnosis.facts import Facts, Window
from tenfold.measure.machine.resources import GroupSample, MachineSample, Resources, Sample
from tenfold.measure.postgresql.explain import MissingIndex, Plan
from tenfold.measure.postgresql.sessions import DatabaseStats
from tenfold.measure.probe.evidence import (
    ClockStats,
    Evidence,
    PoolStats,
    RouteStats,
    SampleStats,
    StatementStats,
    ThreadStats,
)

SEEN = dict.fromkeys(("requests", "statements", "pool", "event loop", "threads"), True)
ROUTE = "GET /orders"


def route(**changes: Any) -> RouteStats:
    """One route: 100 requests of 100 ms."""
    return RouteStats(
        **{
            "route": ROUTE, "endpoint": "app.py:10", "requests": 100, "total_s": 10.0, "slow_s": 8.0,
            "slow_wait_s": 0.0, "bytes": 100_000,
        } | changes
    )  # fmt: skip


def statement(**changes: Any) -> StatementStats:
    """One quick statement, twice in each request."""
    return StatementStats(
        **{
            "route": ROUTE, "fingerprint": "SELECT a FROM t WHERE b = ?", "site": "app.py:12",
            "executions": 200, "requests": 100, "executions_max": 2, "database": "postgresql",
            "repeating_requests": 0, "repetitions_mean": 0.0, "total_s": 0.2, "slow_s": 0.1, "mean_ms": 1.0,
        } | changes
    )  # fmt: skip


def call(**changes: Any) -> StatementStats:
    """A call to another service in each request, 50 ms each."""
    return statement(
        **{
            "fingerprint": "HTTP pay.example", "database": "http", "site": "app.py:20", "executions": 100,
            "executions_max": 1, "total_s": 5.0, "mean_ms": 50.0,
        } | changes
    )  # fmt: skip


def pool(**changes: Any) -> PoolStats:
    """A pool of five with a free connection."""
    return PoolStats(
        **{
            "site": "db.py:3", "size": 5, "max_overflow": 0, "pools": 1, "checked_out_max": 3,
            "checkouts": 100, "wait_count": 0, "timeouts": 0, "held_s": 8.0, "full_share": 0.0,
            "wait_p95_ms": 0.0,
        } | changes
    )  # fmt: skip


FULL = {"full_share": 0.9, "wait_p95_ms": 80.0, "wait_count": 60}


def sample(state: str, seconds: float, **changes: Any) -> SampleStats:
    """Requests seen in a state."""
    return SampleStats(
        **{
            "route": ROUTE, "state": state, "place": "thread", "line": "app.py:15", "detail": "",
            "holds": False, "seconds": seconds, "cpu_s": seconds if state == "run" else 0.0,
        } | changes
    )  # fmt: skip


def clock(**changes: float) -> ClockStats:
    """Ten seconds of a quiet event loop."""
    return ClockStats(
        **{"wall_s": 10.0, "cpu_s": 1.0, "runqueue_s": 0.1, "gil_s": 0.0, "blocked_s": 0.0} | changes
    )


def evidence(**changes: Any) -> Evidence:
    """A healthy service over ten seconds."""
    uses = changes.pop("statements", (statement(),))
    calls = tuple(one for one in uses if one.database == "http")
    whole = Evidence(
        seconds=10, workers=1, seen=SEEN, routes=(route(),), calls=calls, pools=(pool(),),
        statements=tuple(one for one in uses if one.database != "http"),
        threads=ThreadStats(total=40, busy_max=3, waiting_max=0, waiting_share=0), loop_clock=clock(),
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def resources(
    *, app: float = 0.3, database: float = 0.2, cache: float = 0.0, proxy: float = 0.0, **machine: float
) -> Resources:
    """A machine of two cores."""

    def group(cores: float) -> GroupSample:
        return GroupSample(cpu_cores=cores, rss_bytes=1)

    quiet = dict.fromkeys(MachineSample.__struct_fields__, 0.0) | {
        "cpu": (app + database + cache + proxy + 0.1) / 2,
        "memory": 0.4,
    }
    used = {"app": app, "database": database, "cache": cache, "proxy": proxy}
    groups = {name: group(cores) for name, cores in used.items()}
    whole = Sample(1.0, groups, MachineSample(**(quiet | machine)))
    return Resources(2, (whole,))


def window(
    *,
    used: dict[str, float] | None = None,
    database: DatabaseStats | None = None,
    client_s: float = 0.0,
    **changes: Any,
) -> Window:
    """A window whose evidence has these changes."""
    return Window(
        evidence(**changes), resources(**(used or {})), database or DatabaseStats(samples=100), client_s
    )


def facts(limit: Window, low: Window | None = None, **changes: Any) -> Facts:
    """Facts with a low window of a healthy service."""
    calm = window(routes=(route(total_s=1.0),)) if low is None else low
    return Facts(limit=limit, low=calm, **changes)


REPEATED = statement(
    repeating_requests=90, repetitions_mean=51.0, executions_max=60, executions=5100, total_s=6.0
)
SLOW = statement(mean_ms=101.0, total_s=20.2)
MISSING = MissingIndex("orders", "user_id", 200_000, 5, "CREATE INDEX CONCURRENTLY ON orders (user_id)")
PLAN = Plan(fingerprint=SLOW.fingerprint, cost=10, lines=("Seq Scan on orders",), missing=(MISSING,))
