"""The cost of a monitored pool: a checkout with one query, beside SQLAlchemy's own pool.

    python -m benchmarks.pool [--rounds 60] [--queries 100] [--json]

One real PostgreSQL on loopback, sync and async engines of psycopg. The pools take turns of a few queries
each, so that other load on the machine hits all alike. "as is" is ``create_engine(url)`` and nothing
else; "pre-ping" is what many services set to survive a restart of their database. The ratio is the median of
the rounds' ratios to "as is"; its quartiles are printed beside it. Goal: monitored at most 1.05.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from typing import Any

from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from tenfold.database import pool_options
from tenfold.database.pools.request_context import job_context
from tenfold.deadlines import deadline
from tenfold.settings import Settings, StackSettings
from tenfold.stack import Stack

QUERY = text("SELECT abalance FROM accounts WHERE aid = :aid")
VARIANTS = ("as is", "pre-ping", "monitored", "monitored, deadline")
GOALS = {"monitored": 1.05}

Run = Callable[[Any, int], Awaitable[None]]


async def sync_queries(engine: Any, count: int) -> None:
    """Run queries as requests do: a connection, a transaction, one query each."""
    for aid in range(count):
        with engine.connect() as connection:
            connection.execute(QUERY, {"aid": aid}).all()


async def async_queries(engine: Any, count: int) -> None:
    """The same with an async engine."""
    for aid in range(count):
        async with engine.connect() as connection:
            (await connection.execute(QUERY, {"aid": aid})).all()


def engines(url: str, *, is_async: bool) -> dict[str, Any]:
    """One engine for each variant, all with room for one connection."""
    make: Any = create_async_engine if is_async else create_engine
    plain = {"pool_size": 1, "max_overflow": 0}
    monitored = pool_options(url, registry=CollectorRegistry(), **plain)
    bound = pool_options(url, registry=CollectorRegistry(), **plain)
    return {
        "as is": make(url, **plain),
        "pre-ping": make(url, pool_pre_ping=True, **plain),
        "monitored": make(url, **monitored),
        "monitored, deadline": make(url, **bound),
    }


async def microseconds(variant: str, engine: Any, run: Run, count: int) -> float:
    """Microseconds a query."""
    with job_context("benchmark"), deadline(5) if "deadline" in variant else nullcontext():
        started = time.perf_counter()
        await run(engine, count)
        return (time.perf_counter() - started) / count * 1e6


async def measure(url: str, *, is_async: bool, rounds: int, queries: int) -> dict[str, list[float]]:
    """Variant → microseconds a query, one a round."""
    run = async_queries if is_async else sync_queries
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    made = engines(url, is_async=is_async)
    for engine in made.values():
        await run(engine, 100)
    for variant in turns(VARIANTS, rounds):
        found[variant].append(await microseconds(variant, made[variant], run, queries))
    for engine in made.values():
        ended = engine.dispose()
        if is_async:
            await ended
    return found


def prepare(url: str) -> None:
    """A table of ten thousand rows."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE accounts AS SELECT n AS aid, 0 AS abalance, repeat('x', 80) AS filler "
                "FROM generate_series(0, 9999) AS n"
            )
        )
        connection.execute(text("ALTER TABLE accounts ADD PRIMARY KEY (aid)"))
    engine.dispose()


def compare(url: str, *, rounds: int, queries: int) -> Iterator[Result]:
    """Yield each variant's ratio to "as is"."""
    for is_async in (False, True):
        kind = "async" if is_async else "sync"
        found = asyncio.run(measure(url, is_async=is_async, rounds=rounds, queries=queries))
        plain = found.pop("as is")
        yield median_result(f"{kind}: as is, µs", plain)
        for variant, times in found.items():
            yield ratio_result(f"{kind}: {variant} / as is", times, plain, goal=GOALS.get(variant))


def main() -> None:
    """Measure and print the ratios."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--queries", type=int, default=100)
    options = parser.parse_args()
    with Stack(Settings(stack=StackSettings(redis=False, nginx=False))) as stack:
        assert stack.database_url is not None
        url = stack.database_url.replace("postgresql:", "postgresql+psycopg:")
        prepare(url)
        results = compare(url, rounds=options.rounds, queries=options.queries)
        print_results(results, as_json=options.json)


if __name__ == "__main__":
    main()
