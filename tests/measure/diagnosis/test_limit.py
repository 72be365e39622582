"""The limit: from the queue that grew to what works, sleeps or waits outside; and none without a queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.diagnosis.facts import PARTS, Facts, Window
from tenfold.measure.diagnosis.limit import call_host, find_limit
from tenfold.measure.postgresql.sessions import DatabaseStats
from tenfold.measure.probe.evidence import ThreadStats
from tests.measure.support.facts import (
    FULL,
    SEEN,
    call,
    clock,
    evidence,
    facts,
    pool,
    resources,
    route,
    sample,
    statement,
    window,
)

WAITS = route(total_s=20.0, wait_s=12.0)  # for a connection
QUEUE = {"client_s": 0.5}  # of it 0.1 s in the app
BUSY_LOOP = clock(cpu_s=9.3)
BLOCKED_LOOP = clock(cpu_s=1.0, blocked_s=8.0)


def sessions(**kinds: float) -> DatabaseStats:
    return DatabaseStats(samples=100, sessions=kinds)


def slow_database(**kinds: float) -> dict[str, Any]:
    """Statements take the time, and the database's own view of them."""
    return {"statements": (statement(total_s=30.0),), "database": sessions(**kinds)}


def held(state: str, seconds: float = 40.0, **changes: Any) -> Any:
    return sample(state, seconds, holds=True, **changes)


def waiting_threads(*samples: Any) -> dict[str, Any]:
    threads = ThreadStats(total=40, busy_max=40, waiting_max=9, waiting_share=0.5)
    return {"samples": (sample("thread", 60.0, place="task"), *samples), "threads": threads}


FOUND: dict[str, tuple[Window, str, str]] = {
    "the event loop computes": (
        window(loop_clock=BUSY_LOOP, used={"app": 0.95}, **QUEUE),
        "python",
        "run",
    ),
    "the event loop is blocked": (window(loop_clock=BLOCKED_LOOP, **QUEUE), "loop", "blocked"),
    "the event loop waits for a core": (
        window(
            loop_clock=clock(cpu_s=3.0, runqueue_s=6.0),
            used={"app": 0.4, "database": 1.3, "cpu": 0.97},
            **QUEUE,
        ),
        "machine",
        "db",
    ),
    "a pool is full, held in statements": (
        window(pools=(pool(**FULL),), routes=(WAITS,), samples=(held("db"),)),
        "pool",
        "db",
    ),
    "a pool is full, held in a call": (
        window(pools=(pool(**FULL),), routes=(WAITS,), samples=(held("http"),), statements=(call(),)),
        "pool",
        "http",
    ),
    "a pool is full, held while computing, and Python has room": (
        window(pools=(pool(**FULL),), routes=(WAITS,), samples=(held("run"),), used={"app": 0.5}),
        "pool",
        "run",
    ),
    "a pool is full, held while computing, and Python has none": (
        window(pools=(pool(**FULL),), routes=(WAITS,), samples=(held("run"),), used={"app": 0.9}),
        "python",
        "run",
    ),
    "holders wait for a second connection": (
        window(pools=(pool(**FULL),), routes=(WAITS,), samples=(held("pool"), held("db", 20.0))),
        "pool",
        "pool",
    ),
    "connections are held by requests that have ended": (
        window(pools=(pool(**FULL, held_after=4),), routes=(WAITS,), samples=(held("db"),)),
        "pool",
        "leak",
    ),
    "statements wait for locks": (window(**slow_database(lock=2.5, cpu=0.3)), "row locks", "lock"),
    "a pool is held by statements that wait for locks": (
        window(
            pools=(pool(**FULL),),
            routes=(WAITS,),
            samples=(held("db"),),
            database=sessions(lock=3.0, open=1.0),
        ),
        "row locks",
        "lock",
    ),
    "commits wait for the disk": (window(**slow_database(wal=2.0, cpu=0.3)), "commit", "wal"),
    "the database computes": (
        window(**slow_database(cpu=2.6), used={"database": 1.7}),
        "database",
        "db",
    ),
    "the database fills the machine": (
        window(**slow_database(cpu=1.2), used={"database": 1.0, "app": 0.6, "cpu": 0.95}),
        "database",
        "db",
    ),
    "results wait for Python": (
        window(**slow_database(cpu=0.1), used={"app": 0.9}),
        "python",
        "run",
    ),
    "threads wait for another service": (
        window(**waiting_threads(sample("http", 300.0)), statements=(call(),)),
        "threads",
        "http",
    ),
    "threads wait for the pool": (
        window(**waiting_threads(sample("pool", 90.0), held("http")), pools=(pool(**FULL),)),
        "pool",
        "http",
    ),
    "threads of a WSGI server": (
        window(
            samples=(sample("sleep", 39.0),),
            seen=SEEN | {"event loop": False},
            loop_clock=None,
            threads=None,
            **QUEUE,
        ),
        "threads",
        "sleep",
    ),
    "another service is slower under load": (
        window(statements=(call(total_s=30.0),), loop_clock=clock()),
        "external",
        "http",
    ),
    "another service refuses": (
        window(
            statements=(
                call(total_s=5.0),
                call(fingerprint="HTTP pay.example: 429", executions=40, total_s=1.0),
            )
        ),
        "external",
        "http",
    ),
    "a lock of the app": (window(samples=(sample("lock", 50.0), sample("sleep", 9.0))), "lock", "sleep"),
    "a pool without hooks, held in a call": (
        window(
            pools=(), samples=(sample("pool", 40.0, place="task"), sample("http", 20.0)), statements=(call(),)
        ),
        "pool",
        "http",
    ),
    "a quota": (window(used={"throttled": 0.2, "app": 0.5}, **QUEUE), "quota", "run"),
    "Redis": (window(used={"cache": 0.9}, samples=(sample("io", 40.0),)), "redis", "io"),
    "nginx": (window(used={"proxy": 0.9}, **QUEUE), "proxy", ""),
    "other programs": (window(used={"cpu": 0.98}, **QUEUE), "others", ""),
}


def low() -> Window:
    return window(routes=(route(total_s=6.0),), statements=(call(), statement()))


@pytest.mark.guarantee("what stops a service is named", pattern="measure", under="each kind of limit")
@pytest.mark.parametrize("case", FOUND)
def test_limit_is_found(case: str) -> None:
    limit, resource, held_by = FOUND[case]
    found = find_limit(facts(limit, low()))
    assert (found.resource, found.held_by) == (resource, held_by)
    assert found.title and found
    assert all(step for step in found.chain)


NOT_THE_LIMIT: dict[str, tuple[Window, str]] = {
    "a loop that is busy half of the time": (window(loop_clock=clock(cpu_s=5.0), **QUEUE), "python"),
    "a loop that is blocked half of the time": (window(loop_clock=clock(blocked_s=5.0), **QUEUE), "loop"),
    "a pool that is full for moments": (
        window(pools=(pool(**FULL, in_use=0.4),), routes=(WAITS,), samples=(held("db"),)),
        "pool",
    ),
    "a pool with a free connection": (window(routes=(WAITS,), samples=(held("db"),)), "pool"),
    "few sessions that wait for a lock": (window(**slow_database(lock=0.2, cpu=1.0)), "row locks"),
    "a database with free cores": (window(**slow_database(cpu=0.9), used={"database": 0.8}), "database"),
    "commits beside other work": (window(**slow_database(wal=0.3, cpu=2.0)), "commit"),
    "a call that takes as long as ever": (
        window(statements=(call(),), samples=(sample("http", 9.0),)),
        "external",
    ),
    "threads with one that is free": (
        window(
            samples=(sample("thread", 60.0, place="task"), sample("http", 300.0)),
            threads=ThreadStats(total=40, busy_max=39, waiting_max=0, waiting_share=0.0),
            statements=(call(),),
        ),
        "threads",
    ),
    "a quota that is hardly touched": (window(used={"throttled": 0.02, "app": 0.5}, **QUEUE), "quota"),
    "a pool without hooks for which hardly any request waits": (
        window(pools=(), samples=(sample("pool", 1.0), sample("http", 20.0))),
        "pool",
    ),
    "Redis with time to spare": (window(used={"cache": 0.5}, samples=(sample("io", 40.0),)), "redis"),
    "a busy machine that is the measurement's own": (
        window(used={"cpu": 0.98, "app": 0.9, "database": 0.9}),
        "others",
    ),
    "Python with half a core": (window(used={"app": 0.5}, **QUEUE), "python"),
}


@pytest.mark.control("what stops a service is named", "the same queue without a resource in use")
@pytest.mark.parametrize("case", NOT_THE_LIMIT)
def test_resource_that_is_not_used_up_is_not_the_limit(case: str) -> None:
    limit, resource = NOT_THE_LIMIT[case]
    assert find_limit(facts(limit, low())).resource != resource


def test_nothing_is_named_without_a_resource_in_use() -> None:
    found = find_limit(facts(window(**QUEUE), low()))
    assert not found
    assert found.resource == "none" and "before a worker took it +" in found.evidence[0]


def test_delay_that_is_the_same_at_low_load_is_no_queue() -> None:
    same = window(routes=(route(total_s=50.0),), samples=(sample("sleep", 45.0, place="task"),))
    found = find_limit(Facts(limit=same, low=same))
    assert (found.resource, found.held_by) == ("delay", "sleep")
    assert "450 ms of it asleep" in found.title


def test_chain_leads_from_the_queue_to_the_limit() -> None:
    limit = window(
        **waiting_threads(sample("thread", 90.0), sample("pool", 90.0), held("db")), pools=(pool(**FULL),),
        database=sessions(lock=3.0, open=1.0),
    )  # fmt: skip
    assert find_limit(facts(limit, low())).chain == (
        "requests wait for a worker thread",
        "the threads wait for a connection",
        "requests wait for a connection",
        "connections are held by requests that wait for statements",
        "statements wait for locks of other transactions",
    )


def test_generator_is_not_taken_for_another_program() -> None:
    busy = window(used={"cpu": 0.98, "app": 0.9, "database": 0.3})
    assert find_limit(Facts(limit=busy, generator_cores=0.2)).resource == "others"
    assert find_limit(Facts(limit=busy, generator_cores=0.7)).resource != "others"


def test_busiest_trial_shows_the_limit_not_the_mean() -> None:
    quiet, full = evidence(loop_clock=clock(cpu_s=2.0)), evidence(loop_clock=BUSY_LOOP)
    merged = Window(
        evidence(loop_clock=clock(cpu_s=5.5)), resources(app=0.9), client_s=0.5, trials=(quiet, full)
    )
    assert find_limit(Facts(limit=merged)).resource == "python"
    assert find_limit(Facts(limit=replace(merged, trials=(quiet,)))).resource != "loop"


def test_host_of_a_call() -> None:
    assert call_host("HTTP 127.0.0.1") == "127.0.0.1"


seconds = st.floats(0.0, 100.0)
states = st.sampled_from([*PARTS, "in thread"])


@given(
    samples=st.lists(st.tuples(states, seconds, st.booleans(), st.sampled_from(["loop", "thread", "task"]))),
    busy=st.tuples(*[st.floats(0.0, 10.0)] * 4),
    used=st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 2.0), st.floats(0.0, 1.0)),
    kinds=st.dictionaries(
        st.sampled_from(["cpu", "lock", "wal", "io", "open", "other"]), st.floats(0.0, 40.0)
    ),
    full=st.floats(0.0, 1.0),
    client_s=st.floats(0.0, 10.0),
)
def test_any_facts_have_one_limit_or_none(
    samples: list[tuple[str, float, bool, str]],
    busy: tuple[float, ...],
    used: tuple[float, float, float],
    kinds: dict[str, float],
    full: float,
    client_s: float,
) -> None:
    limit = window(
        samples=tuple(sample(state, s, holds=holds, place=place) for state, s, holds, place in samples),
        loop_clock=clock(**dict(zip(("cpu_s", "runqueue_s", "gil_s", "blocked_s"), busy, strict=True))),
        used=dict(zip(("app", "database", "cpu"), used, strict=True)),
        database=DatabaseStats(samples=10, sessions=kinds),
        pools=(pool(full_share=full),),
        statements=(statement(), call()),
        client_s=client_s,
    )
    found = find_limit(facts(limit))
    assert found.title
    assert len(found.chain) <= len(PARTS)
