"""Ranking: each rule finds its bottleneck, and nothing without one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tenfold.measure.diagnosis.bottleneck import Analysis
from tenfold.measure.diagnosis.detector import BottleneckDetector
from tenfold.measure.postgresql.explain import IndexProof, MissingIndex, Plan
from tenfold.measure.observer import TrialRecord, at_the_limit
from tenfold.measure.machine.resources import GroupSample, MachineSample, Resources, Sample
from tenfold.measure.diagnosis.rules import severity
from tenfold.measure.probe.aggregate import Aggregate
from tenfold.measure.probe.evidence import (
    Evidence,
    LoopStats,
    PoolStats,
    RouteStats,
    StatementStats,
    ThreadStats,
)
from tenfold.measure.settings import Objective

SEEN = dict.fromkeys(("requests", "statements", "pool", "event loop", "threads"), True)


def route(**changes: Any) -> RouteStats:
    return RouteStats(
        **{
            "route": "GET /orders", "endpoint": "app.py:10", "requests": 100, "total_s": 10.0,
            "slow_s": 8.0, "slow_wait_s": 0.0,
        } | changes
    )  # fmt: skip


def statement(**changes: Any) -> StatementStats:
    return StatementStats(
        **{
            "route": "GET /orders", "fingerprint": "SELECT a FROM t WHERE b = ?", "site": "app.py:12",
            "executions": 200, "requests": 100, "executions_max": 2,
            "repeating_requests": 0, "repetitions_mean": 0.0, "total_s": 0.2, "slow_s": 0.1, "mean_ms": 1.0,
        } | changes
    )  # fmt: skip


def pool(**changes: Any) -> PoolStats:
    return PoolStats(
        **{
            "site": "db.py:3", "size": 5, "max_overflow": 0, "pools": 1,
            "checked_out_max": 3, "checkouts": 100, "wait_count": 0, "timeouts": 0, "held_s": 8.0,
            "full_share": 0.0, "wait_p95_ms": 0.0,
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
        return GroupSample(cpu_cores=cores, rss_bytes=1)

    quiet = dict.fromkeys(MachineSample.__struct_fields__, 0.0) | {"cpu": 0.3, "memory": 0.4}
    sample = Sample(1.0, {"app": group(app), "database": group(database)}, MachineSample(**(quiet | machine)))
    return Resources(2, (sample,))


def rank(seen: Evidence, used: Resources | None = None, **options: Any) -> Analysis:
    return BottleneckDetector().rank(seen, used or resources(), **options)


REPEATED = statement(
    repeating_requests=90, repetitions_mean=51, executions_max=60, executions=5100, slow_s=5.7, total_s=6.0
)
SLOW = statement(mean_ms=101.0, total_s=20.2, slow_s=5.0)
FREQUENT = statement(slow_s=1.7, executions=5000)
MISSING = MissingIndex("orders", "user_id", 200_000, 5, "CREATE INDEX CONCURRENTLY ON orders (user_id)")
PLAN = Plan(fingerprint=SLOW.fingerprint, cost=10, lines=("Seq Scan on orders",), missing=(MISSING,))


def proven(*, after_ms: float) -> Plan:
    proof = IndexProof(before_ms=20, after_ms=after_ms, cost_before=5000, cost_after=9)
    return replace(PLAN, missing=(replace(MISSING, proof=proof),))


def test_healthy_service_has_no_bottleneck() -> None:
    analysis = rank(evidence(), plans=(Plan(SLOW.fingerprint, cost=1),))
    assert (analysis.bottlenecks, analysis.not_measured) == ((), ())


def test_n_plus_one_has_line_route_and_share() -> None:
    (found,) = rank(evidence(statements=(REPEATED,)))
    assert (found.kind, found.title, found.where) == ("Database", "N+1 in GET /orders", "app.py:12")
    assert found.share == pytest.approx(5.7 / 8)
    assert found.evidence[0].startswith("one statement runs 51 times per request, at most 60, in 90 of 100")
    assert found.proof == "suspected"


def test_n_plus_one_without_a_line_names_its_endpoint() -> None:
    (found,) = rank(evidence(statements=(msgspec.structs.replace(REPEATED, site=""),)))
    assert found.where == "app.py:10"


def test_missing_index_is_one_bottleneck_for_all_its_statements() -> None:
    twice = (SLOW, msgspec.structs.replace(SLOW, route="GET /b", site="app.py:20", slow_s=1.0))
    (found,) = rank(evidence(statements=twice), plans=(PLAN,))
    assert found.remedy == MISSING.create
    assert found.evidence[0] == "reads 200,000 rows to find 5"
    assert found.share == pytest.approx(6 / 8)
    assert found.proof == "suspected"


def test_proof_confirms_or_removes_a_missing_index() -> None:
    (found,) = rank(evidence(statements=(SLOW,)), plans=(proven(after_ms=0.1),))
    assert (found.proof, found.title) == ("proven", "missing index on orders (user_id)")
    assert not rank(evidence(statements=(SLOW,)), plans=(proven(after_ms=19),))


@pytest.mark.parametrize(
    ("seen", "used", "title"),
    [
        ({"statements": (SLOW,)}, {}, "slow statement in GET /orders"),
        ({"statements": (FREQUENT,)}, {}, "frequent statement in GET /orders"),
        (
            {"statements": (statement(fingerprint="CONNECT", executions=90, slow_s=2.0),)},
            {},
            "many requests open a new connection",
        ),
        (
            {
                "pools": (pool(full_share=0.83, wait_p95_ms=44, wait_count=60),),
                "routes": (route(slow_wait_s=2.4),),
            },
            {},
            "full 83 % of the time",
        ),
        ({}, {"app": 0.97}, "the app's processes use a full core each"),
        ({}, {"cpu": 0.95, "app": 0.8, "database": 0.9}, "the machine has no free core"),
        ({}, {"database": 1.6}, "the database has no free core"),
        ({}, {"memory": 0.86}, "memory is nearly full"),
        ({}, {"iowait": 0.21}, "CPUs wait for the disk"),
        (
            {"loop": LoopStats(ticks=9, p50_ms=2, p95_ms=51, max_ms=200, blockers=(("app.py:30", 7),))},
            {},
            "runs callbacks 51 ms late at p95",
        ),
        (
            {"threads": ThreadStats(total=40, busy_max=40, waiting_max=9, waiting_share=0.5)},
            {},
            "all 40 threads for sync endpoints are busy",
        ),
    ],
)
def test_each_rule_finds_its_bottleneck(seen: dict[str, Any], used: dict[str, Any], title: str) -> None:
    (found,) = rank(evidence(**seen), resources(**used))
    assert found.title == title
    assert found.remedy
    assert found.evidence


UPDATE = statement(fingerprint="UPDATE t SET a = ? WHERE b = ?", total_s=0.8, slow_s=0.01)


@pytest.mark.parametrize(
    ("statements", "seen", "remedy"),
    [
        ((statement(),), "0 % is N+1 or lacks an index, 100 % is other reads", "could take over 100 %"),
        ((statement(), UPDATE), "0 % is N+1 or lacks an index, 20 % is other reads", "write less"),
        (
            (statement(), msgspec.structs.replace(REPEATED, total_s=0.6, slow_s=0.01)),
            "75 % is N+1 or lacks an index, 25 % is other reads",
            "fix N+1 and missing indexes first",
        ),
        ((statement(fingerprint="SELECT a FROM t WHERE b = ? FOR UPDATE"),), "0 % is other reads", "write"),
        ((), "0 % is other reads", "write less"),
    ],
)
def test_remedy_of_a_busy_database_puts_savings_before_replicas(
    statements: tuple[StatementStats, ...], seen: str, remedy: str
) -> None:
    found = rank(evidence(statements=statements), resources(database=1.6)).bottlenecks
    (limit,) = [one for one in found if one.title == "the database has no free core"]
    assert limit.evidence[0] == "1.60 of 2 cores used"
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
def test_values_at_the_limits_are_no_bottlenecks(seen: dict[str, Any], used: dict[str, Any]) -> None:
    assert rank(evidence(**seen), resources(**used)).bottlenecks == ()


def test_full_pool_follows_from_slow_statements() -> None:
    full = {
        "pools": (pool(full_share=0.83, wait_p95_ms=44, wait_count=60),),
        "routes": (route(slow_wait_s=2.4),),
    }
    first, second = rank(evidence(statements=(REPEATED,), **full))
    assert (first.kind, second.kind) == ("Database", "Connection Pool")
    assert second.follows_from == (1,)
    assert second.remedy == "follows from 1: fix that and measure again before you enlarge it"
    # Most of the waiting is for the repeated statement: 6 of 8 connection-seconds.
    assert first.share == pytest.approx((5.7 + 2.4 * 6 / 8) / 8)
    assert second.evidence[1] == "checkouts wait 44 ms at p95; 60 of 100 waited"


def test_pool_held_by_other_work_does_not_follow_from_statements() -> None:
    """Connections are held during other work: fewer statements would change little."""
    full = pool(full_share=0.83, wait_p95_ms=44, wait_count=60, held_s=100.0)
    analysis = rank(evidence(statements=(REPEATED,), pools=(full,), routes=(route(slow_wait_s=7.0),)))
    first = analysis[0]
    assert (first.kind, first.follows_from) == ("Connection Pool", ())
    assert first.remedy.startswith("check a connection out later")
    assert "statements run in 6 % of the time they are checked out" in first.evidence


def test_statements_of_one_loop_are_one_bottleneck() -> None:
    """Eight lines of one endpoint, each repeated in its only request."""
    loop = tuple(
        statement(
            fingerprint=f"SELECT a{n} FROM t WHERE b = ?", site=f"app.py:{n}", requests=1, executions=30,
            executions_max=30, repeating_requests=1, repetitions_mean=30, total_s=0.5 + n / 100, slow_s=0.5,
        )
        for n in range(8)
    )  # fmt: skip
    (found,) = rank(evidence(statements=loop))
    assert found.title == "N+1 in GET /orders"
    assert found.where == "app.py:7"  # the costliest
    assert found.share == pytest.approx(8 * 0.5 / 8)
    assert "as do 7 more, at app.py:6, app.py:5 …" in found.evidence


def test_line_that_several_routes_share_is_one_bottleneck() -> None:
    other = msgspec.structs.replace(REPEATED, route="GET /b", total_s=1.0, slow_s=0.8)
    (found,) = rank(evidence(statements=(REPEATED, other)))
    assert found.title == "N+1 in GET /orders and 1 more route"
    assert found.share == pytest.approx(6.5 / 8)
    (slow,) = rank(evidence(statements=(SLOW, msgspec.structs.replace(SLOW, route="GET /b", slow_s=1.0))))
    assert slow.title == "slow statement in GET /orders and 1 more route"


def test_lines_of_different_routes_are_different_causes() -> None:
    other = msgspec.structs.replace(REPEATED, route="GET /b", site="b.py:2", total_s=1.0, slow_s=0.8)
    assert [one.title for one in rank(evidence(statements=(REPEATED, other)))] == [
        "N+1 in GET /orders",
        "N+1 in GET /b",
    ]


def many_statements(count: int, *, slow_s: float = 0.4) -> tuple[StatementStats, ...]:
    return tuple(
        msgspec.structs.replace(
            SLOW, route=f"GET /{n}", site=f"app.py:{n}", fingerprint=f"SELECT {n}", slow_s=slow_s
        )
        for n in range(count)
    )


def test_full_resource_is_never_cut_off_by_the_number_of_lines() -> None:
    found = rank(evidence(statements=many_statements(20)), resources(app=0.97)).bottlenecks
    assert "the app's processes use a full core each" in [one.title for one in found]
    assert len(found) == 12


def test_limit_of_lines_keeps_the_costliest() -> None:
    statements = (*many_statements(20, slow_s=0.2), *many_statements(1, slow_s=4.0))
    statements = (*statements[:20], msgspec.structs.replace(statements[20], fingerprint="SELECT last"))
    found = rank(evidence(statements=statements)).bottlenecks
    assert len(found) == 12
    assert found[0].share == pytest.approx(4 / 8)


@pytest.mark.parametrize(
    ("share", "executions", "expected"),
    [
        (0.3, 100, "critical"), (0.9, None, "critical"), (0.29, 100, "high"), (0.1, 100, "high"),
        (0.09, 100, "medium"), (0.05, 10, "medium"), (0.9, 9, "medium"), (None, None, "medium"),
        (0.04, 100, "low"), (0.04, 2, "low"),
    ],
)  # fmt: skip
def test_severity_follows_the_share_and_few_executions_are_not_critical(
    share: float | None, executions: int | None, expected: str
) -> None:
    assert severity(share, executions=executions) == expected


def test_proven_index_counts_with_what_it_saves() -> None:
    """It saves 1.5 of 16.6 ms in two executions: most of the statement's time is elsewhere."""
    few = statement(executions=2, requests=2, mean_ms=16.6, total_s=0.0332, slow_s=5.0)
    proof = IndexProof(before_ms=1.55, after_ms=0.05, cost_before=5000, cost_after=9)
    plan = replace(PLAN, missing=(replace(MISSING, proof=proof),))
    (found,) = [
        one for one in rank(evidence(statements=(few,)), plans=(plan,)) if one.remedy == MISSING.create
    ]
    assert found.proof == "proven"
    assert found.share == pytest.approx(5 / 8 * 1.5 / 16.6)
    assert found.severity in ("low", "medium")


def test_proven_index_of_a_busy_database_counts_with_the_planners_estimate() -> None:
    """Its own scans make each look-up slower than the proof found it on the idle database."""
    (found, *_) = rank(evidence(statements=(SLOW,)), resources(database=1.9), plans=(proven(after_ms=0.1),))
    assert found.share == pytest.approx(5 / 8 * (1 - 9 / 5000))


@pytest.mark.parametrize(
    ("sql", "remedy"),
    [
        ("SELECT a FROM t WHERE b = ?", "selectinload"),
        ("SELECT count(*) FROM t WHERE b = ?", "GROUP BY"),
        ("SELECT coalesce(sum(a), ?) FROM t WHERE b = ?", "GROUP BY"),
        ("SELECT EXISTS (SELECT ? FROM t WHERE b = ?)", "GROUP BY"),
        ("SELECT a FROM t WHERE b = ? FOR UPDATE", "FOR UPDATE"),
        ("SELECT a, b FROM settings", "keep its rows"),
        ("SELECT nextval(?)", "outside of the loop"),
        ("INSERT INTO t (a) VALUES (?)", "write all rows with one statement"),
        ("UPDATE t SET a = ? WHERE b = ?", "change all rows with one statement"),
        ("DELETE FROM t WHERE b = ?", "change all rows with one statement"),
    ],
)
def test_remedy_of_a_repeated_statement_fits_its_kind(sql: str, remedy: str) -> None:
    (found, *_) = rank(evidence(statements=(msgspec.structs.replace(REPEATED, fingerprint=sql),)))
    assert remedy in found.remedy
    assert ("selectinload" in found.remedy) == (remedy == "selectinload")


@pytest.mark.parametrize(
    ("blockers", "used", "where", "remedy"),
    [
        ((("app.py:30", 9), ("app.py:7", 1)), {}, "app.py:30", "move the blocking call to a thread"),
        ((("app.py:30", 3), ("app.py:7", 3), ("app.py:9", 3)), {}, None, "no line of the service stands out"),
        ((("dates.py:3", 2), ("app.py:7", 2)), {"app": 0.8}, None, "find what uses the CPU"),
        ((("dates.py:3", 2), ("app.py:7", 2)), {"cpu": 0.95}, None, "find what uses the CPU"),
        ((("app.py:30", 9),), {"app": 0.95}, "app.py:30", "make this line cheaper"),
        ((), {}, None, "no line of the service stands out"),
    ],
)
def test_late_event_loop_blames_a_line_only_when_it_blocks(
    blockers: tuple[tuple[str, int], ...], used: dict[str, float], where: str | None, remedy: str
) -> None:
    loop = LoopStats(ticks=9, p50_ms=20, p95_ms=90, max_ms=200, blockers=blockers)
    (found,) = [one for one in rank(evidence(loop=loop), resources(**used)) if one.kind == "Event loop"]
    assert (found.where, remedy in found.remedy) == (where, True)
    assert "to_thread" not in found.remedy or remedy.startswith("move")


CONNECT = statement(fingerprint="CONNECT", executions=90, slow_s=2.0, total_s=2.0, site="app.py:40")


@pytest.mark.parametrize(
    ("pools", "kinds", "where", "remedy"),
    [
        ((pool(max_overflow=10),), ("QueuePool",), "db.py:3", "raise pool_size"),
        ((), ("NullPool",), "app.py:40", "without poolclass=NullPool"),
        ((), ("StaticPool",), "app.py:40", "keep connections open in a pool"),
        (
            (pool(site="app.py:39", pools=90, max_overflow=10),),
            ("QueuePool",),
            "app.py:39",
            "create the engine once",
        ),
        ((pool(),), ("QueuePool",), "app.py:40", "find why connections are closed early"),
    ],
)
def test_connection_churn_names_its_line_and_cause(
    pools: tuple[PoolStats, ...], kinds: tuple[str, ...], where: str, remedy: str
) -> None:
    (found,) = rank(evidence(statements=(CONNECT,), pools=pools, pool_kinds=kinds))
    assert (found.where, remedy in found.remedy) == (where, True)
    assert ("pool_size" in found.remedy) == remedy.startswith("raise pool_size")


def test_connection_churn_does_not_follow_from_slow_statements() -> None:
    analysis = rank(evidence(statements=(REPEATED, CONNECT), pools=(), pool_kinds=("NullPool",)))
    churn = next(one for one in analysis if one.title == "many requests open a new connection")
    assert churn.follows_from == () and "NullPool" in churn.remedy


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"statements": ()}, "no statement ran in these trials"),
        ({}, "no connection was checked out in these trials"),
        ({"pool_kinds": ("NullPool",)}, "the engine uses NullPool, which has no queue to observe"),
    ],
)
def test_unseen_pool_has_the_true_reason(changes: dict[str, Any], says: str) -> None:
    blind = evidence(pools=(), seen=SEEN | {"pool": False}, **changes)
    assert f"connection pool: not seen ({says})" in rank(blind).not_measured


def test_full_pool_counts_the_checkouts_that_still_wait() -> None:
    stuck = pool(checkouts=0, wait_count=0, waiting=7, waiting_s=4.2, wait_p95_ms=4200.0, full_share=1.0)
    (found,) = rank(evidence(pools=(stuck,)))
    assert "7 of 7 waited" in found.evidence[1]
    assert found.evidence[2] == "7 of them still waited at the end, the longest 4.2 s"


def test_busiest_trial_counts_not_the_mean_over_all() -> None:
    """0.94 cores in the failed trial, 0.26 in the one that confirms: the limit is the CPU."""
    quiet = MachineSample(**dict.fromkeys(MachineSample.__struct_fields__, 0.1))

    def sample(at: float, cores: float) -> Sample:
        return Sample(at, {"app": GroupSample(cpu_cores=cores, rss_bytes=1)}, quiet)

    samples = [sample(n / 2, 0.94 if n < 8 else 0.26) for n in range(40)]
    windows = ((0.0, 3.5), (4.0, 20.0))
    (found,) = rank(evidence(), Resources(2, tuple(samples)).during(windows))
    assert found.title == "the app's processes use a full core each"
    assert found.evidence[0].startswith("0.94 cores per worker")
    assert rank(evidence(), Resources(2, tuple(samples))).bottlenecks == ()


def record(rate: float) -> TrialRecord:
    return TrialRecord(rate, 0.0, 1.0, Aggregate(0.0), 1.0)


@pytest.mark.parametrize(
    ("low", "high", "rates"),
    [
        (50.0, 60.0, [45, 55, 80]),  # up to 90/s; the ramp's 160/s is far beyond
        (50.0, None, [45, 55, 80 - 5]),
        (10.0, 12.0, [20]),
        (None, None, [20, 45, 55, 80, 160]),
        (500.0, None, [20, 45, 55, 80, 160]),
    ],
)
def test_diagnosis_reads_the_trials_at_and_beyond_the_limit(
    low: float | None, high: float | None, rates: list[float]
) -> None:
    all_rates = [20, 45, 55, 75 if rates[-1] == 75 else 80, 160]
    records = [record(rate) for rate in all_rates]
    assert [one.rate for one in at_the_limit(records, low, high)] == rates


def test_cpu_used_by_other_programs_is_reported_as_such() -> None:
    (found,) = rank(evidence(), resources(app=0.3, database=0.2, cpu=1.0))
    assert (found.kind, found.title) == ("Machine", "other programs use its cores")


def test_late_event_loop_on_a_busy_core_is_reported_as_cpu() -> None:
    late = LoopStats(ticks=9, p50_ms=20, p95_ms=90, max_ms=200, blockers=())
    (found,) = rank(evidence(loop=late), resources(app=1.0))
    assert found.kind == "CPU"


def test_unobserved_sources_are_listed_as_not_measured() -> None:
    blind = Evidence(seconds=1, workers=0, seen=dict.fromkeys(SEEN, False))
    analysis = BottleneckDetector().rank(blind, None)
    assert not analysis.bottlenecks
    text = "; ".join(analysis.not_measured)
    for name in ("requests", "statements and pools", "event loop", "threads", "CPU, memory"):
        assert name in text
    assert "4 requests: dropped" in "; ".join(rank(evidence(dropped=4)).not_measured)
    unexplained = Plan(SLOW.fingerprint, reason="permission denied")
    assert "permission denied" in "; ".join(rank(evidence(), plans=(unexplained,)).not_measured)


def test_pool_waits_are_compared_with_the_objective() -> None:
    waiting = evidence(
        pools=(pool(full_share=0.5, wait_p95_ms=44, wait_count=60),), routes=(route(slow_wait_s=2.4),)
    )
    assert len(rank(waiting, objective=Objective(slow_ms=200))) == 1
    assert len(rank(waiting, objective=Objective(slow_ms=1000))) == 0


def test_evidence_and_resources_round_trip_as_json() -> None:
    whole = evidence()
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Evidence) == whole
    used = resources()
    assert msgspec.json.decode(msgspec.json.encode(used), type=Resources) == used
