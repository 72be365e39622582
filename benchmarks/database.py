"""The cost of the router: one read of one row through a Session, beside bare SQLAlchemy on the same replica.

    python -m benchmarks.database [--rounds 60] [--reads 50] [--json]

Real PostgreSQL, a primary and a replica, loopback. The variants take turns of a few reads each, in an order
that turns as well, so that other load on the machine hits all of them; the ratio is the median of the
rounds' ratios, with its quartiles. Bare SQLAlchemy is measured as it is usually used (BEGIN and ROLLBACK
around the read) and in AUTOCOMMIT, which is what the router's reads are in. Goal: a read that needs not ask
takes at most 1.05 of bare SQLAlchemy.

    no token            a reader without a token: a script, a job
    the same, own pool  with SQLAlchemy's own pool in place of the router's monitored one
    covered             the connection is known to have replayed the token
    covered, monotonic  the same, and the read moves the token (visitors, by default)
    asking              the token is newer than the known position: the replica is asked
    write               a transaction with one UPDATE, whose position is asked for after COMMIT
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from tenfold.database import DatabaseRouter, FreshnessLimits
from tenfold.settings import Settings, StackSettings
from tenfold.stack import Stack

KEY = "a key of the benchmark, 32 bytes or more"
READS = (
    "bare",
    "bare, AUTOCOMMIT",
    "no token",
    "the same, own pool",
    "covered",
    "covered, monotonic",
    "asking",
)
WRITES = ("bare write", "write")
GOALS = dict.fromkeys(("no token", "covered", "covered, monotonic"), 1.05)  # beside bare


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Counter(Base):
    """One row is read and written."""

    __tablename__ = "counters"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


LOOK = select(Counter.value).where(Counter.id == 1)
BUMP = text("update counters set value = value + 1 where id = 1")


class Bench:
    """The variants, each a method that makes so many reads or writes and returns the seconds they took."""

    def __init__(self, primary: str, replica: str) -> None:
        driver = ("postgresql:", "postgresql+psycopg:")
        self.plain = create_engine(replica.replace(*driver))
        self.autocommit = create_engine(
            replica.replace(*driver), isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True
        )
        self.primary = create_engine(primary.replace(*driver))
        brief = FreshnessLimits(wait_s=1, monotonic=False)
        self.router = DatabaseRouter(primary, [replica], keys=KEY, freshness=brief)
        own: dict[str, Any] = {"engine": lambda _: {}}
        self.own_pool = DatabaseRouter(primary, [replica], keys=KEY, freshness=brief, options=own)
        self.monotonic = DatabaseRouter(primary, [replica], keys=KEY, freshness=FreshnessLimits(wait_s=1))
        self.variants: dict[str, Callable[[int], float]] = {
            "bare": lambda count: timed(count, lambda: self._bare(self.plain)),
            "bare, AUTOCOMMIT": lambda count: timed(count, lambda: self._bare(self.autocommit)),
            "no token": lambda count: timed(count, lambda: self._read(self.router)),
            "the same, own pool": lambda count: timed(count, lambda: self._read(self.own_pool)),
            "covered": lambda count: self._covered(self.router, count),
            "covered, monotonic": lambda count: self._covered(self.monotonic, count),
            "asking": lambda count: sum(self._asking() for _ in range(count)),
            "bare write": lambda count: timed(count, self._bare_write),
            "write": lambda count: timed(count, self._write),
        }

    def close(self) -> None:
        """Close engines and routers."""
        for engine in (self.plain, self.autocommit, self.primary):
            engine.dispose()
        self.router.close()
        self.monotonic.close()
        self.own_pool.close()

    @staticmethod
    def _bare(engine: Any) -> None:
        with Session(engine) as session:
            session.execute(LOOK).scalar()

    @staticmethod
    def _read(router: DatabaseRouter) -> None:
        with router.read() as session:
            session.execute(LOOK).scalar()

    def _covered(self, router: DatabaseRouter, count: int) -> float:
        with router.consistency_context():
            self._write(router)
            self._read(router)
            return timed(count, lambda: self._read(router))

    def _asking(self) -> float:
        """A read by a visitor who has just written, on a replica that has caught up."""
        with self.router.consistency_context():
            self._write(self.router)
            token = self.router.token()
        # Awaited on other connections: the measured ones must not know the position yet.
        with self.monotonic.consistency_context(token):
            self._read(self.monotonic)
        with self.router.consistency_context(token):
            return timed(1, lambda: self._read(self.router))

    def _bare_write(self) -> None:
        with Session(self.primary) as session, session.begin():
            session.execute(BUMP)

    def _write(self, router: DatabaseRouter | None = None) -> None:
        with (router or self.router).write() as session:
            session.execute(BUMP)


def timed(count: int, once: Callable[[], None]) -> float:
    """Seconds for so many."""
    started = time.perf_counter()
    for _ in range(count):
        once()
    return time.perf_counter() - started


def measure(bench: Bench, variants: tuple[str, ...], *, rounds: int, reads: int) -> dict[str, list[float]]:
    """Microseconds for one, by variant, one number a round."""
    for variant in variants:
        bench.variants[variant](reads)
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    for variant in turns(variants, rounds):
        found[variant].append(bench.variants[variant](reads) / reads * 1e6)
    return found


def compare(bench: Bench, *, rounds: int, reads: int) -> Iterator[Result]:
    """Yield the ratios of reads to bare SQLAlchemy in both modes, and of a write to a bare one."""
    found = measure(bench, READS, rounds=rounds, reads=reads)
    yield median_result("bare, µs", found["bare"])
    for variant in READS[1:]:
        yield ratio_result(f"{variant} / bare", found[variant], found["bare"], goal=GOALS.get(variant))
    for variant in READS[2:]:
        yield ratio_result(f"{variant} / bare, AUTOCOMMIT", found[variant], found["bare, AUTOCOMMIT"])
    found = measure(bench, WRITES, rounds=rounds, reads=max(1, reads // 5))
    yield median_result("bare write, µs", found["bare write"])
    yield ratio_result("write / bare write", found["write"], found["bare write"])


def main() -> None:
    """Measure and print the ratios."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--reads", type=int, default=50)
    options = parser.parse_args()
    with ExitStack() as exits:
        stack = exits.enter_context(
            Stack(Settings(stack=StackSettings(redis=False, nginx=False, replicas=1)))
        )
        assert stack.database_url is not None
        replica = next(server.url for server in stack.servers if server.kind == "replica")
        bench = Bench(stack.database_url, replica)
        exits.callback(bench.close)
        Base.metadata.create_all(bench.primary)
        with Session(bench.primary) as session, session.begin():
            session.add(Counter(id=1, value=0))
        while stack.replication_lag_bytes() != {"replica_1": 0}:
            time.sleep(0.05)
        print_results(compare(bench, rounds=options.rounds, reads=options.reads), as_json=options.json)


if __name__ == "__main__":
    main()
