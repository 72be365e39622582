"""Four shards: finding a key's shard, a session on it, and a query over all of them, beside their peers.

    python -m benchmarks.sharding [--rounds 30] [--json]

Real PostgreSQL, four databases on two servers, loopback. Variants take turns, so that other load on the
machine hits all of them; a ratio is the median of the rounds' ratios, with its quartiles.

    place / dict            Directory.place(key) beside SHA-256 and a dict look-up written by hand
    session / write         session_for(key) with an INSERT beside DatabaseRouter.write() on that shard
    read of a key / read    session_for(key, read_only=True) beside DatabaseRouter.read()
    all / slowest           query_all() beside the slowest shard alone. Each server takes 20 ms (pg_sleep in
                            a view), as servers with their own cores would; goal at most 1.5. Without that
                            wait, on one machine, it is the Python of four statements that is measured
    horizontal_shard / all  SQLAlchemy's extension on the same shards, one after the other
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from sqlalchemy import BigInteger, create_engine, select, text
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from tenfold.database import DatabaseRouter
from tenfold.settings import Settings, StackSettings
from tenfold.sharding import Sharded, ShardedDatabase, next_id, parse_shard_urls, shard_table
from tenfold.sharding.settings import ShardingSettings
from tenfold.stack import Stack

SCATTER = 1.5
ROWS, WAIT_S, KEYS = 2_000, 0.02, 5_000


class Base(DeclarativeBase):
    """The tables of this benchmark."""


class Order(Sharded, Base):
    """Orders of users."""

    __tablename__ = "orders"
    __sharded_by__ = "user_id"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, server_default=next_id())
    user_id: Mapped[int] = mapped_column(BigInteger, index=True)
    total: Mapped[int] = mapped_column(index=True)


class SlowOrder(Base):
    """The same rows behind a view that takes 20 ms."""

    __tablename__ = "slow_orders"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    bucket: Mapped[int]
    total: Mapped[int]


shard_table(SlowOrder.__table__, "user_id")  # type: ignore[arg-type, unused-ignore]
VIEW = (
    f"CREATE VIEW slow_orders AS SELECT o.* FROM (SELECT pg_sleep({WAIT_S}) OFFSET 0) s CROSS JOIN orders o"
)


class Bench:
    """The variants; each does its work once, or so many keys, and returns the seconds it took."""

    def __init__(self, stack: Stack, exits: ExitStack) -> None:
        self.urls = parse_shard_urls(stack.environment["SHARD_URLS"])
        self.routers = {name: DatabaseRouter(url, metrics=False) for name, url in self.urls.items()}
        self.database = ShardedDatabase(stack.environment["SHARD_DIRECTORY_URL"], self.routers)
        self.directory = self.database.directory()
        self._fill()
        engines = {
            name: create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
            for name, url in self.urls.items()
        }
        self.everywhere = sessionmaker(
            class_=ShardedSession,
            shards=engines,
            shard_chooser=lambda *_: "shard1",
            identity_chooser=lambda *_, **__: list(engines),
            execute_chooser=lambda _: list(engines),
        )
        for closing in (self.database.close, *(router.close for router in self.routers.values())):
            exits.callback(closing)
        for engine in engines.values():
            exits.callback(engine.dispose)
        self.by_hand = {number: bucket.shard for number, bucket in self.directory.buckets.items()}
        self.user = 0

    def _fill(self) -> None:
        for name, router in self.routers.items():
            rows = [
                {"user_id": user, "bucket": place.bucket, "id": user, "total": user * 7919 % 10_007}
                for user in range(ROWS)
                if (place := self.directory.place(user)).shard == name
            ]
            with router.write() as session:
                Base.metadata.tables["orders"].create(session.connection())
                session.execute(Order.__table__.insert(), rows)
                session.execute(text(VIEW))

    # ------------------------------------------------------------------ routing and sessions

    def place(self) -> None:
        """Find the shard of many keys."""
        for key in range(KEYS):
            self.directory.place(key)

    def dict(self) -> None:
        """The same by hand, as one would write it for integers."""
        for key in range(KEYS):
            digest = hashlib.sha256(f"i{len(str(key))}:{key}".encode()).digest()
            self.by_hand[(digest[30] & 15) << 8 | digest[31]]

    def session(self) -> None:
        """An INSERT in a session of its key."""
        self.user += 1
        with self.database.session_for(self.user) as session:
            session.add(Order(user_id=self.user, total=1))

    def write(self) -> None:
        """The same INSERT through the shard's router."""
        self.user += 1
        place = self.directory.place(self.user)
        with self.routers[place.shard].write() as session:
            session.add(Order(id=-self.user, bucket=place.bucket, user_id=self.user, total=1))

    def read_key(self) -> None:
        """A read in a session of its key."""
        self.user += 1
        with self.database.session_for(self.user, read_only=True) as session:
            session.execute(select(Order.total).where(Order.user_id == self.user)).all()

    def read(self) -> None:
        """The same through the shard's router."""
        self.user += 1
        with self.routers[self.directory.place(self.user).shard].read() as session:
            session.execute(select(Order.total).where(Order.user_id == self.user)).all()

    # ------------------------------------------------------------------ all shards

    def all(self, table: Any) -> list[int]:
        """The largest totals of all shards."""
        query = select(table.total).order_by(table.total.desc()).limit(20)
        return list(self.database.query_all(query).scalars())

    def horizontal_shard(self, table: Any) -> list[int]:
        """SQLAlchemy's extension."""
        with self.everywhere() as session:
            return list(session.execute(select(table).order_by(table.total.desc()).limit(20)).scalars())


def timed(work: Callable[[], object]) -> float:
    """Seconds for one."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(variants: dict[str, Callable[[], object]], rounds: int, times: int) -> dict[str, list[float]]:
    """Seconds of each variant, one number a round."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for work in variants.values():
        work()
    for name in turns(list(variants), rounds):
        found[name].append(sum(timed(variants[name]) for _ in range(times)) / times)
    return found


def slowest_of(bench: Bench, table: Any) -> float:
    """Seconds of the slowest shard by itself."""
    query = select(table.total).order_by(table.total.desc()).limit(20)

    def one(router: DatabaseRouter) -> None:
        with router.read() as session:
            session.execute(query).scalars().all()

    return max(timed(lambda router=router: one(router)) for router in bench.routers.values())


def compare(bench: Bench, rounds: int) -> Iterator[Result]:
    """Yield all ratios."""
    found = measure({"place": bench.place, "dict": bench.dict}, rounds, 1)
    yield median_result("place, µs", [value / KEYS * 1e6 for value in found["place"]])
    yield ratio_result("place / dict", found["place"], found["dict"])
    found = measure({"session": bench.session, "write": bench.write}, rounds, 10)
    yield ratio_result("session / write", found["session"], found["write"])
    found = measure({"key": bench.read_key, "read": bench.read}, rounds, 10)
    yield ratio_result("read of a key / read", found["key"], found["read"])
    for label, table, goal in (("", SlowOrder, SCATTER), (", without a wait", Order, None)):
        everything, one, theirs = [], [], []
        bench.all(table), bench.horizontal_shard(table), slowest_of(bench, table)
        for _ in range(rounds):
            everything.append(timed(lambda table=table: bench.all(table)))
            one.append(slowest_of(bench, table))
            theirs.append(timed(lambda table=table: bench.horizontal_shard(table)))
        if goal:
            yield median_result("all shards, ms", [value * 1e3 for value in everything])
        yield ratio_result(f"all / slowest{label}", everything, one, goal=goal)
        yield ratio_result(f"horizontal_shard / all{label}", theirs, everything)
    theirs_totals = [order.total for order in bench.horizontal_shard(Order)]
    wrong = sum(one != other for one, other in zip(bench.all(Order), theirs_totals, strict=False))
    note = f"{len(theirs_totals)} rows for LIMIT 20"
    yield Result("horizontal_shard: wrong among 20 rows", wrong, note=note)


def main() -> None:
    """Measure and print the ratios."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    settings = Settings(
        stack=StackSettings(redis=False, nginx=False), sharding=ShardingSettings(shards=4, servers=2)
    )
    with Stack(settings) as stack, ExitStack() as exits:
        print_results(compare(Bench(stack, exits), options.rounds), as_json=options.json)


if __name__ == "__main__":
    main()
