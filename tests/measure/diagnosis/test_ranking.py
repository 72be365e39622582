"""What a measurement saw, ranked: each rule finds its damage, and is silent without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tenfold.measure.diagnosis.bottleneck import Analysis
from tenfold.measure.diagnosis.detector import BottleneckDetector
from tenfold.measure.diagnosis.explain import IndexProof, MissingIndex, Plan
from tenfold.measure.diagnosis.resources import GroupSample, MachineSample, Resources, Sample
from tenfold.measure.probe.evidence import (
    Evidence,
    LoopStats,
    PoolStats,
    RouteStats,
    StatementStats,
    ThreadStats,
)
from tenfold.measure.settings import Objective

SEEN = dict.fromkeys(("requests", "sqlalchemy", "pool", "event loop", "threads"), True)


def route(**changes: Any) -> RouteStats:
    return RouteStats(
        **{
            "route": "GET /orders", "endpoint": "app.py:10", "requests": 100, "errors": 0, "total_s": 10.0,
            "p50_ms": 80.0, "p95_ms": 200.0, "p99_ms": 300.0, "database_share": 0.8, "pool_wait_share": 0.0,
            "pool_wait_max_ms": 0.0, "statements_mean": 2.0, "statements_max": 2, "slow_s": 8.0,
            "slow_wait_s": 0.0,
        } | changes
    )  # fmt: skip


def statement(**changes: Any) -> StatementStats:
    return StatementStats(
        **{
            "route": "GET /orders", "fingerprint": "SELECT a FROM t WHERE b = ?", "site": "app.py:12",
            "function": "orders", "executions": 200, "requests": 100, "executions_max": 2,
            "repeating_requests": 0, "repetitions_mean": 0.0, "total_s": 0.2, "slow_s": 0.1, "mean_ms": 1.0,
            "max_ms": 2.0, "rows_mean": 1.0,
        } | changes
    )  # fmt: skip


def pool(**changes: Any) -> PoolStats:
    return PoolStats(
        **{
            "dialect": "postgresql", "site": "db.py:3", "size": 5, "max_overflow": 0, "pools": 1,
            "checked_out_max": 3, "checkouts": 100, "wait_count": 0, "timeouts": 0, "held_s": 8.0,
            "full_share": 0.0, "wait_p50_ms": 0.0, "wait_p95_ms": 0.0, "wait_max_ms": 0.0,
        } | changes
    )  # fmt: skip


def evidence(**changes: Any) -> Evidence:
    whole = Evidence(
        seconds=10, workers=1, seen=SEEN, routes=(route(),), statements=(statement(),), pools=(pool(),),
        loop=LoopStats(ticks=200, p50_ms=1, p95_ms=5, max_ms=20, blockers=()),
        threads=ThreadStats(total=40, busy_max=3, waiting_max=0, waiting_share=0),
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def resources(*, app: float = 0.3, database: float = 0.2, **machine: float) -> Resources:
    def group(cores: float) -> GroupSample:
        return GroupSample(
            processes=2,
            cpu_cores=cores,
            rss_bytes=1,
            private_bytes=1,
            faults=0,
            read_bytes=0,
            written_bytes=0,
        )

    quiet = dict.fromkeys(MachineSample.__struct_fields__, 0.0) | {"cpu": 0.3, "memory": 0.4, "running": 1}
    sample = Sample(1.0, {"app": group(app), "database": group(database)}, MachineSample(**(quiet | machine)))
    return Resources(2, 2**33, (sample,), 0.01)


def ranked(seen: Evidence, used: Resources | None = None, **options: Any) -> Analysis:
    return BottleneckDetector().rank(seen, used or resources(), **options)


REPEATED = statement(
    repeating_requests=90, repetitions_mean=51, executions_max=60, executions=5100, slow_s=5.7, total_s=6.0
)
SLOW = statement(mean_ms=101.0, slow_s=5.0)
FREQUENT = statement(slow_s=1.7, executions=5000)
MISSING = MissingIndex("orders", "user_id", 200_000, 5, "CREATE INDEX CONCURRENTLY ON orders (user_id)")
PLAN = Plan(fingerprint=SLOW.fingerprint, cost=10, lines=("Seq Scan on orders",), missing=(MISSING,))


def proven(*, after_ms: float) -> Plan:
    proof = IndexProof(before_ms=20, after_ms=after_ms, cost_before=5000, cost_after=9)
    return replace(PLAN, missing=(replace(MISSING, proof=proof),))


def test_nothing_is_found_in_a_healthy_service() -> None:
    analysis = ranked(evidence(), plans=(Plan(SLOW.fingerprint, cost=1),))
    assert (analysis.bottlenecks, analysis.not_measured) == ((), ())


def test_repetition_is_named_with_line_route_and_share() -> None:
    (found,) = ranked(evidence(statements=(REPEATED,)))
    assert (found.kind, found.title, found.where) == ("Database", "N+1 in GET /orders", "app.py:12")
    assert found.share == pytest.approx(5.7 / 8)
    assert "51 times one statement" in found.evidence[0]
    assert found.proof == "suspected"


def test_repetition_without_a_line_points_at_the_endpoint() -> None:
    (found,) = ranked(evidence(statements=(msgspec.structs.replace(REPEATED, site=""),)))
    assert found.where == "app.py:10"


def test_a_missing_index_is_named_once_for_all_its_statements() -> None:
    twice = (SLOW, msgspec.structs.replace(SLOW, route="GET /b", site="app.py:20", slow_s=1.0))
    (found,) = ranked(evidence(statements=twice), plans=(PLAN,))
    assert found.remedy == MISSING.create
    assert found.evidence[0] == "200,000 rows read for 5"
    assert found.share == pytest.approx(6 / 8)
    assert found.proof == "suspected"


def test_a_proof_decides() -> None:
    (found,) = ranked(evidence(statements=(SLOW,)), plans=(proven(after_ms=0.1),))
    assert (found.proof, found.title) == ("proven", "missing index on orders (user_id)")
    assert not ranked(evidence(statements=(SLOW,)), plans=(proven(after_ms=19),))


@pytest.mark.parametrize(
    ("seen", "used", "title"),
    [
        ({"statements": (SLOW,)}, {}, "slow statement in GET /orders"),
        ({"statements": (FREQUENT,)}, {}, "frequent statement in GET /orders"),
        (
            {"statements": (statement(fingerprint="CONNECT", executions=90, slow_s=2.0),)},
            {},
            "connections are made again and again",
        ),
        (
            {
                "pools": (pool(full_share=0.83, wait_p95_ms=44, wait_count=60),),
                "routes": (route(slow_wait_s=2.4),),
            },
            {},
            "full 83% of the time",
        ),
        ({}, {"app": 0.97}, "the app's processes are at one core each"),
        ({}, {"cpu": 0.95, "app": 0.8, "database": 0.9}, "the machine has no free core"),
        ({}, {"database": 1.6}, "the database works at its limit"),
        ({}, {"memory": 0.86}, "memory runs out"),
        ({}, {"iowait": 0.21}, "processors wait for the disk"),
        (
            {"loop": LoopStats(ticks=9, p50_ms=2, p95_ms=51, max_ms=200, blockers=(("app.py:30", 7),))},
            {},
            "51 ms late at p95",
        ),
        (
            {"threads": ThreadStats(total=40, busy_max=40, waiting_max=9, waiting_share=0.5)},
            {},
            "all 40 threads for sync endpoints are taken",
        ),
    ],
)
def test_each_kind_is_found_alone(seen: dict[str, Any], used: dict[str, Any], title: str) -> None:
    (found,) = ranked(evidence(**seen), resources(**used))
    assert found.title == title
    assert found.remedy
    assert found.evidence


UPDATE = statement(fingerprint="UPDATE t SET a = ? WHERE b = ?", total_s=0.8, slow_s=0.01)


@pytest.mark.parametrize(
    ("statements", "seen", "remedy"),
    [
        ((statement(),), "0% are N+1 or lack an index, 100% are other reads", "could take 100%"),
        ((statement(), UPDATE), "0% are N+1 or lack an index, 20% are other reads", "write less"),
        (
            (statement(), msgspec.structs.replace(REPEATED, total_s=0.6, slow_s=0.01)),
            "75% are N+1 or lack an index, 25% are other reads",
            "these first",
        ),
        ((statement(fingerprint="SELECT a FROM t WHERE b = ? FOR UPDATE"),), "0% are other reads", "write"),
        ((), "0% are other reads", "write less"),
    ],
)
def test_what_could_be_saved_comes_before_replicas(
    statements: tuple[StatementStats, ...], seen: str, remedy: str
) -> None:
    found = ranked(evidence(statements=statements), resources(database=1.6)).bottlenecks
    (limit,) = [one for one in found if one.title == "the database works at its limit"]
    assert limit.evidence[0] == "1.60 of 2 cores"
    assert seen in limit.evidence[1]
    assert remedy in limit.remedy


@pytest.mark.parametrize(
    ("seen", "used"),
    [
        ({"statements": (statement(mean_ms=100.0, slow_s=1.0),)}, {}),  # not strictly above, nor frequent
        ({"pools": (pool(full_share=0.9, wait_p95_ms=20, wait_count=9),)}, {}),
        ({}, {"app": 0.89, "cpu": 0.89, "memory": 0.85, "iowait": 0.2, "database": 1.3}),
        ({"loop": LoopStats(ticks=9, p50_ms=2, p95_ms=50, max_ms=200, blockers=())}, {}),
        ({"threads": ThreadStats(total=40, busy_max=39, waiting_max=9, waiting_share=0.5)}, {}),
    ],
)
def test_nothing_is_found_at_the_boundary(seen: dict[str, Any], used: dict[str, Any]) -> None:
    assert ranked(evidence(**seen), resources(**used)).bottlenecks == ()


def test_a_pool_follows_from_the_database() -> None:
    full = {
        "pools": (pool(full_share=0.83, wait_p95_ms=44, wait_count=60),),
        "routes": (route(slow_wait_s=2.4),),
    }
    first, second = ranked(evidence(statements=(REPEATED,), **full))
    assert (first.kind, second.kind) == ("Database", "Connection Pool")
    assert second.follows_from == (1,)
    assert second.remedy == "follows from 1: measure again before you enlarge it"
    # Most of the waiting is for the repeated statement: 6 of the 8 seconds for which connections were taken.
    assert first.share == pytest.approx((5.7 + 2.4 * 6 / 8) / 8)
    assert second.evidence[1].startswith("waits 44 ms at p95")


def test_a_pool_that_others_fill_does_not_follow_from_the_database() -> None:
    """Connections are kept while something else is done: fewer statements would change little."""
    full = pool(full_share=0.83, wait_p95_ms=44, wait_count=60, held_s=100.0)
    analysis = ranked(evidence(statements=(REPEATED,), pools=(full,), routes=(route(slow_wait_s=7.0),)))
    first = analysis[0]
    assert (first.kind, first.follows_from) == ("Connection Pool", ())
    assert first.remedy.startswith("take a connection later")
    assert "statements run in 6% of the time they are taken" in first.evidence


def test_a_full_machine_is_not_blamed_on_the_service() -> None:
    (found,) = ranked(evidence(), resources(app=0.3, database=0.2, cpu=1.0))
    assert (found.kind, found.title) == ("Machine", "other programs take its cores")


def test_a_late_loop_follows_from_a_busy_core() -> None:
    late = LoopStats(ticks=9, p50_ms=20, p95_ms=90, max_ms=200, blockers=())
    (found,) = ranked(evidence(loop=late), resources(app=1.0))
    assert found.kind == "CPU"


def test_what_was_not_seen_is_never_healthy() -> None:
    blind = Evidence(seconds=1, workers=0, seen=dict.fromkeys(SEEN, False))
    analysis = BottleneckDetector().rank(blind, None)
    assert not analysis.bottlenecks
    text = "; ".join(analysis.not_measured)
    for name in ("requests", "statements and pools", "event loop", "threads", "processors"):
        assert name in text
    assert "4 requests: dropped" in "; ".join(ranked(evidence(dropped=4)).not_measured)
    unexplained = Plan(SLOW.fingerprint, reason="permission denied")
    assert "permission denied" in "; ".join(ranked(evidence(), plans=(unexplained,)).not_measured)


def test_the_pool_is_judged_by_the_objective() -> None:
    waiting = evidence(
        pools=(pool(full_share=0.5, wait_p95_ms=44, wait_count=60),), routes=(route(slow_wait_s=2.4),)
    )
    assert len(ranked(waiting, objective=Objective(slow_ms=200))) == 1
    assert len(ranked(waiting, objective=Objective(slow_ms=1000))) == 0


def test_evidence_travels_as_json() -> None:
    whole = evidence()
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Evidence) == whole
    used = resources()
    assert msgspec.json.decode(msgspec.json.encode(used), type=Resources) == used
