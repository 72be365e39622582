"""Causes: what uses a limit up, each with its line, its share and its remedy; and what is merely present."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.diagnosis.bottleneck import Bottleneck, Limit
from tenfold.measure.diagnosis.causes import find_causes
from tenfold.measure.diagnosis.facts import Facts, Window
from tenfold.measure.postgresql.explain import IndexProof, Plan
from tenfold.measure.postgresql.sessions import DatabaseStats
from tenfold.measure.probe.evidence import PoolStats, StatementStats
from tests.measure.support.facts import (
    MISSING,
    PLAN,
    REPEATED,
    SLOW,
    call,
    facts,
    pool,
    route,
    sample,
    statement,
    window,
)


def causes(limit: Window, resource: str, held_by: str = "", **options: Any) -> list[Bottleneck]:
    told = Limit(resource=resource, title=resource, held_by=held_by, remedy="call it less often")
    return find_causes(facts(limit, **options), told)


def plans(*many: Plan) -> dict[str, Plan]:
    return {plan.fingerprint: plan for plan in many}


def proven(*, after_ms: float) -> Plan:
    proof = IndexProof(before_ms=20, after_ms=after_ms, cost_before=5000, cost_after=9)
    return replace(PLAN, missing=(replace(MISSING, proof=proof),))


def cpu(seconds: float, line: str = "app.py:15", **changes: Any) -> Any:
    return sample("run", seconds, line=line, **changes)


MANY_ROWS = statement(rows=700_000, executions=100, total_s=4.0)
FEW_BYTES = route(bytes=100_000)  # 1,000 a response for 7,000 rows
COMMIT = statement(fingerprint="COMMIT", site="app.py:30", executions=400, total_s=3.0)
CONNECT = statement(fingerprint="CONNECT", executions=90, total_s=2.0, site="app.py:40")

FOUND: dict[str, tuple[Window, tuple[str, str], str, str, str]] = {
    # case: window, limit, cause, line, a word of the remedy
    "N+1 in the database": (
        window(statements=(REPEATED,)),
        ("database", "db"),
        "n_plus_one",
        "app.py:12",
        "selectinload",
    ),
    "N+1 in Python": (
        window(statements=(REPEATED,), samples=(cpu(8.0, "app.py:12", detail="statement"), cpu(1.0))),
        ("python", "run"),
        "n_plus_one",
        "app.py:12",
        "selectinload",
    ),
    "N+1 without a line": (
        window(
            statements=(msgspec.structs.replace(REPEATED, site=""),),
            samples=(cpu(8.0, "", detail="rows to objects"),),
        ),
        ("python", "run"),
        "n_plus_one",
        "app.py:10",
        "selectinload",
    ),
    "N+1 of those who hold connections": (
        window(
            statements=(REPEATED,),
            samples=(sample("db", 30.0, holds=True, line="app.py:12"), sample("run", 5.0, holds=True)),
        ),
        ("pool", "db"),
        "n_plus_one",
        "app.py:12",
        "selectinload",
    ),
    "a call while a connection is held": (
        window(
            samples=(sample("http", 30.0, holds=True, detail="pay.example"), sample("db", 5.0, holds=True))
        ),
        ("pool", "http"),
        "held_during_call",
        "app.py:15",
        "return the connection before",
    ),
    "computing while a connection is held": (
        window(samples=(sample("run", 30.0, holds=True), sample("db", 5.0, holds=True))),
        ("pool", "run"),
        "held_during_call",
        "app.py:15",
        "return the connection before",
    ),
    "a second connection": (
        window(
            samples=(
                sample("pool", 30.0, holds=True, line="app.py:18"),
                sample("pool", 90.0, line="app.py:16"),
            )
        ),
        ("pool", "pool"),
        "deadlock",
        "app.py:18",
        "one connection",
    ),
    "a leak": (
        window(pools=(pool(held_after=4),)),
        ("pool", "leak"),
        "leak",
        "app.py:12",
        "return each connection",
    ),
    "a slow statement": (
        window(statements=(SLOW,)),
        ("database", "db"),
        "slow_statement",
        "app.py:12",
        "read its plan",
    ),
    "rows that are not shown": (
        window(statements=(MANY_ROWS,), routes=(FEW_BYTES,)),
        ("database", "db"),
        "over_fetching",
        "app.py:12",
        "LIMIT",
    ),
    "rows that are not shown, in Python": (
        window(
            statements=(MANY_ROWS,),
            routes=(FEW_BYTES,),
            samples=(cpu(5.0, "", detail="rows to objects"), cpu(3.0)),
        ),
        ("python", "run"),
        "over_fetching",
        "app.py:12",
        "LIMIT",
    ),
    "connections": (
        window(statements=(CONNECT,), pools=()),
        ("database", "db"),
        "connect",
        "app.py:40",
        "keep connections open",
    ),
    "commits": (window(statements=(COMMIT,)), ("commit", "wal"), "commit", "app.py:30", "one transaction"),
    "commits in Python": (
        window(
            statements=(COMMIT,), samples=(cpu(4.0, "app.py:30", detail="statement"), cpu(9.0, "", detail=""))
        ),
        ("python", "run"),
        "commit",
        "app.py:30",
        "one transaction",
    ),
    "a line that computes": (
        window(samples=(cpu(6.0), cpu(4.0, ""))),
        ("python", "run"),
        "plain_cpu",
        "app.py:15",
        "cheaper",
    ),
    "a password hash": (
        window(samples=(cpu(6.0, detail="password hash"),)),
        ("python", "run"),
        "password_hash",
        "app.py:15",
        "thread",
    ),
    "a client for each request": (
        window(samples=(cpu(6.0, detail="client set-up"),)),
        ("python", "run"),
        "client_per_request",
        "app.py:15",
        "once, at start-up",
    ),
    "serialisation": (
        window(samples=(cpu(6.0, "", detail="serialisation"),)),
        ("python", "run"),
        "serialisation",
        "app.py:10",
        "fewer objects",
    ),
    "instrumentation": (
        window(samples=(cpu(6.0, detail="instrumentation"),)),
        ("python", "run"),
        "instrumentation",
        "app.py:15",
        "sample fewer",
    ),
    "middleware": (
        window(samples=(cpu(6.0, "", detail="middleware"),)),
        ("python", "run"),
        "middleware",
        "app.py:10",
        "plain ASGI",
    ),
    "a background thread": (
        window(samples=(cpu(6.0, "jobs.py:9", route=""), cpu(6.0, ""))),
        ("python", "run"),
        "gil",
        "jobs.py:9",
        "another process",
    ),
    "a call on the event loop": (
        window(
            samples=(
                sample("http", 8.0, place="loop", detail="pay.example"),
                sample("sleep", 1.0, place="loop", line="a.py:3"),
            )
        ),
        ("loop", "blocked"),
        "blocking_call",
        "app.py:15",
        "async client",
    ),
    "a sleep on the event loop": (
        window(samples=(sample("sleep", 8.0, place="loop"),)),
        ("loop", "blocked"),
        "blocking_call",
        "app.py:15",
        "asyncio.sleep",
    ),
    "a statement on the event loop": (
        window(samples=(sample("db", 8.0, place="loop"),)),
        ("loop", "blocked"),
        "blocking_call",
        "app.py:15",
        "async driver",
    ),
    "a row lock": (
        window(
            database=DatabaseStats(
                10, {"lock": 2.0}, {}, {("SELECT a FROM t WHERE b = ?", "UPDATE t", "other"): 2.0}
            )
        ),
        ("row locks", "lock"),
        "row_lock",
        "app.py:12",
        "commit at once",
    ),
    "a row lock of an idle transaction": (
        window(
            database=DatabaseStats(
                10, {"lock": 2.0}, {}, {("SELECT a FROM t WHERE b = ?", "UPDATE t", "open"): 2.0}
            ),
            samples=(sample("http", 9.0, holds=True),),
        ),
        ("row locks", "lock"),
        "row_lock",
        "app.py:12",
        "before other work",
    ),
    "a lock of the app": (
        window(samples=(sample("lock", 50.0, line="app.py:21"), sample("sleep", 9.0, line="app.py:22"))),
        ("lock", "sleep"),
        "lock",
        "app.py:21",
        "hold the lock for less time",
    ),
    "threads that wait for a call": (
        window(samples=(sample("http", 50.0, detail="pay.example"),)),
        ("threads", "http"),
        "threads",
        "app.py:15",
        "async",
    ),
    "a delay": (
        window(samples=(sample("sleep", 50.0),)),
        ("delay", "sleep"),
        "delay",
        "app.py:15",
        "shorter",
    ),
    "another service": (
        window(statements=(call(),)),
        ("external", "http"),
        "external_service",
        "app.py:20",
        "less often",
    ),
}


@pytest.mark.guarantee(
    "a cause is named with its line and remedy", pattern="measure", under="each kind of cause"
)
@pytest.mark.parametrize("case", FOUND)
def test_cause_is_found_with_its_line_and_remedy(case: str) -> None:
    limit, (resource, held_by), cause, where, remedy = FOUND[case]
    first = causes(limit, resource, held_by)[0]
    assert (first.cause, first.where) == (cause, where)
    assert remedy in first.remedy
    assert first.title and (first.share is None or first.share >= 0.2)


PRESENT: dict[str, tuple[Window, tuple[str, str]]] = {
    "an N+1 beside a larger cost": (
        window(statements=(REPEATED,), samples=(cpu(0.8, "app.py:12", detail="statement"), cpu(9.2, ""))),
        ("python", "run"),
    ),
    "statements that are quick and needed": (window(), ("database", "db")),
    "lines that share the work": (
        window(samples=tuple(cpu(1.0, f"app.py:{10 * n}") for n in range(8))),
        ("python", "run"),
    ),
    "serialisation of a fifth": (
        window(samples=(cpu(2.0, "", detail="serialisation"), cpu(8.0, ""))),
        ("python", "run"),
    ),
    "many rows that are shown": (
        window(
            statements=(MANY_ROWS,),
            routes=(route(bytes=70_000_000),),
            samples=(cpu(5.0, "", detail="rows to objects"),),
        ),
        ("python", "run"),
    ),
    "one commit in each request": (
        window(statements=(statement(fingerprint="COMMIT", executions=100, total_s=3.0),)),
        ("database", "db"),
    ),
    "few connections": (
        window(statements=(msgspec.structs.replace(CONNECT, executions=4),)),
        ("database", "db"),
    ),
    "a pool that fills": (window(statements=(CONNECT,), pools=(pool(size=90),)), ("database", "db")),
    "ORM work for one statement": (
        window(samples=(cpu(9.0, "app.py:12", detail="statement"),)),
        ("python", "run"),
    ),
    "threads of other routes": (window(samples=(sample("http", 50.0, route=""),)), ("threads", "http")),
    "no limit, and no part of a request that grew": (window(statements=(REPEATED,)), ("none", "")),
}


@pytest.mark.control("a cause is named with its line and remedy", "the same work below its threshold")
@pytest.mark.parametrize("case", PRESENT)
def test_what_is_merely_present_is_no_cause(case: str) -> None:
    limit, (resource, held_by) = PRESENT[case]
    assert causes(limit, resource, held_by) == []


def test_n_plus_one_has_route_share_and_numbers() -> None:
    (found,) = causes(window(statements=(REPEATED, statement(total_s=2.0, site="b.py:1"))), "database", "db")
    assert (found.kind, found.title) == ("Database", "N+1 in GET /orders")
    assert found.share == pytest.approx(6 / 8)
    assert found.evidence[0] == "one statement runs 51 times a request, at most 60, in 90 of 100 requests"
    assert (found.proof, found.severity) == ("suspected", "critical")


def test_statements_of_one_loop_are_one_cause() -> None:
    """Eight lines of one endpoint, each repeated in its only request."""
    loop = tuple(
        statement(
            fingerprint=f"SELECT a{n} FROM t WHERE b = ?", site=f"app.py:{n}", requests=1, executions=30,
            executions_max=30, repeating_requests=1, repetitions_mean=30.0, total_s=0.5 + n / 100,
        )
        for n in range(8)
    )  # fmt: skip
    (found,) = causes(window(statements=loop), "database", "db")
    assert (found.title, found.where) == ("N+1 in GET /orders", "app.py:7")  # the costliest
    assert "as do 7 more, at app.py:6, app.py:5 …" in found.evidence


def test_line_that_several_routes_share_is_one_cause() -> None:
    other = msgspec.structs.replace(REPEATED, route="GET /b", total_s=1.0)
    (found,) = causes(window(statements=(REPEATED, other)), "database", "db")
    assert found.title == "N+1 in GET /orders and 1 more route"
    assert found.share == pytest.approx(1.0)
    slow = (SLOW, msgspec.structs.replace(SLOW, route="GET /b"))
    (one,) = causes(window(statements=slow), "database", "db")
    assert one.title == "slow statement in GET /orders and 1 more route"


def test_lines_of_different_routes_are_different_causes() -> None:
    other = msgspec.structs.replace(REPEATED, route="GET /b", site="b.py:2", total_s=3.0)
    found = causes(window(statements=(REPEATED, other)), "database", "db")
    assert [one.title for one in found] == ["N+1 in GET /orders", "N+1 in GET /b"]


def test_missing_index_is_one_cause_for_all_its_statements() -> None:
    twice = (SLOW, msgspec.structs.replace(SLOW, route="GET /b", site="app.py:20"))
    (found,) = causes(window(statements=twice), "database", "db", plans=plans(PLAN))
    assert found.remedy == MISSING.create
    assert found.evidence[0] == "reads 200,000 rows to find 5"
    assert (found.share, found.proof) == (pytest.approx(1.0), "suspected")


def test_proof_confirms_or_removes_a_missing_index() -> None:
    quick = window(statements=(msgspec.structs.replace(SLOW, mean_ms=25.0, total_s=5.0),))
    (found,) = causes(quick, "database", "db", plans=plans(proven(after_ms=0.1)))
    assert (found.proof, found.title) == ("proven", "missing index on orders (user_id)")
    others = causes(window(statements=(SLOW,)), "database", "db", plans=plans(proven(after_ms=19)))
    assert [one.cause for one in others] == ["slow_statement"]


def test_proven_index_counts_with_what_it_saves() -> None:
    """It saves 19.9 of 101 ms: most of the statement's time is elsewhere."""
    (found,) = causes(window(statements=(SLOW,)), "database", "db", plans=plans(proven(after_ms=0.1)))
    assert found.share == pytest.approx(19.9 / 101, rel=0.01)
    little = plans(replace(proven(after_ms=0.1), missing=(replace(MISSING, proof=IndexProof(5, 0.1, 9, 8)),)))
    (slow,) = causes(window(statements=(SLOW,)), "database", "db", plans=little)
    assert (slow.cause, slow.evidence[-1]) == ("slow_statement", "Seq Scan on orders")
    busy = window(statements=(SLOW,), used={"database": 1.9})
    (found_busy,) = causes(busy, "database", "db", plans=plans(proven(after_ms=0.1)))
    assert found_busy.share == pytest.approx(1 - 9 / 5000)


def test_two_causes_are_both_named_the_larger_first() -> None:
    held = (
        sample("http", 30.0, holds=True, line="app.py:15"),
        sample("db", 20.0, holds=True, line="app.py:12"),
    )
    limit = window(samples=held, statements=(SLOW,))
    found = causes(limit, "pool", "http", plans=plans(PLAN))
    assert [one.cause for one in found] == ["held_during_call", "missing_index"]
    assert [one.share for one in found] == [pytest.approx(0.6), pytest.approx(0.4)]


def test_loop_of_statements_without_an_index_has_both_causes() -> None:
    limit = window(
        statements=(msgspec.structs.replace(REPEATED, total_s=20.0),),
        samples=(
            sample("db", 30.0, holds=True, line="app.py:12"),
            sample("run", 10.0, holds=True, line="app.py:12"),
        ),
    )
    found = causes(limit, "pool", "db", plans=plans(PLAN))
    assert [(one.cause, one.share) for one in found] == [
        ("n_plus_one", pytest.approx(1.0)),
        ("missing_index", pytest.approx(0.75)),
    ]


def test_machine_joins_python_and_database_by_their_cores() -> None:
    limit = window(
        statements=(REPEATED,), samples=(cpu(10.0, "app.py:12", detail="statement"), cpu(10.0, "app.py:90")),
        used={"app": 0.8, "database": 0.8},
    )  # fmt: skip
    found = causes(limit, "machine", "run")
    assert [(one.cause, round(one.share or 0, 2)) for one in found] == [
        ("n_plus_one", 0.75),
        ("plain_cpu", 0.25),
    ]


def test_samples_without_a_line_count_for_the_commonest_one() -> None:
    limit = window(
        samples=(sample("http", 9.0), sample("http", 1.0, line="b.py:2"), sample("http", 30.0, line=""))
    )
    (found,) = causes(limit, "threads", "http")
    assert (found.where, found.share) == ("app.py:15", pytest.approx(39 / 40))


def test_source_of_a_line_tells_a_hash_in_c() -> None:
    limit = window(samples=(cpu(9.0),))
    source = {"app.py:15": '    return hashlib.pbkdf2_hmac("sha256", password, salt, 600_000)'}
    assert causes(limit, "python", "run", sources=source)[0].cause == "password_hash"
    assert causes(limit, "python", "run")[0].cause == "plain_cpu"


def test_idle_transaction_names_what_the_app_does_meanwhile() -> None:
    limit, (resource, held_by), *_ = FOUND["a row lock of an idle transaction"]
    (found,) = causes(limit, resource, held_by)
    assert (
        found.evidence[-1]
        == "the transaction is idle 100 % of that time: the app waits for another service at app.py:15"
    )


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
def test_new_connections_name_their_line_and_cause(
    pools: tuple[PoolStats, ...], kinds: tuple[str, ...], where: str, remedy: str
) -> None:
    (found,) = causes(window(statements=(CONNECT,), pools=pools, pool_kinds=kinds), "database", "db")
    assert (found.where, remedy in found.remedy) == (where, True)
    assert ("pool_size" in found.remedy) == remedy.startswith("raise pool_size")


statements = st.builds(
    lambda name, site, n, total, rows, repeats: statement(
        fingerprint=name,
        site=site,
        executions=n,
        total_s=total,
        rows=rows,
        repeating_requests=repeats,
        repetitions_mean=9.0 if repeats else 0.0,
    ),
    st.sampled_from(["SELECT a", "COMMIT", "CONNECT", "UPDATE t", "SELECT b FROM c WHERE d = ?"]),
    st.sampled_from(["", "app.py:12", "b.py:9"]),
    st.integers(1, 9_000),
    st.floats(0.0, 30.0),
    st.integers(0, 10**6),
    st.integers(0, 100),
)
samples = st.builds(
    lambda state, line, detail, place, holds, s, path: sample(
        state, s, line=line, detail=detail, place=place, holds=holds, route=path
    ),
    st.sampled_from(["run", "db", "http", "pool", "lock", "sleep", "io", "loop"]),
    st.sampled_from(["", "app.py:12", "app.py:90", "b.py:9"]),
    st.sampled_from(["", "statement", "serialisation", "password hash", "rows to objects"]),
    st.sampled_from(["loop", "thread", "task"]),
    st.booleans(),
    st.floats(0.0, 50.0),
    st.sampled_from(["", "GET /orders", "GET /b"]),
)


@given(
    st.lists(statements, max_size=6),
    st.lists(samples, max_size=12),
    st.sampled_from(
        [(resource, held) for _, (resource, held), *_ in FOUND.values()] + [("machine", "run"), ("none", "")]
    ),
)
def test_shares_are_shares_and_the_largest_is_first(
    uses: list[StatementStats], seen: list[Any], limit: tuple[str, str]
) -> None:
    found = causes(window(statements=tuple(uses), samples=tuple(seen)), *limit, plans=plans(PLAN))
    shares = [one.share for one in found if one.share is not None]
    assert all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares, reverse=True)
    assert all(one.title and one.remedy and one.cause for one in found)


def test_facts_without_anything_seen_have_no_cause() -> None:
    for resource in ("python", "pool", "loop", "database", "machine", "lock", "threads"):
        empty = window(statements=(), samples=())
        assert find_causes(Facts(limit=empty), Limit(resource=resource, title="")) == []
