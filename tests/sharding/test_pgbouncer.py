"""Shards behind PgBouncer in transaction mode: a claim lasts as long as its transaction."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select

from tenfold.database import DatabaseRouter
from tenfold.database.pools.pgbouncer import driver_options
from tenfold.sharding import ShardedDatabase
from tests.database.support import pgbouncer_server
from tests.database.support.pgbouncer_server import Program, run_pgbouncer
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Order

program = pgbouncer_server.program
POOLED = ("shard1", "shard2")


@pytest.fixture
def pooled(shards: Shards, program: Program) -> Iterator[ShardedDatabase]:
    """The shards of one server behind a PgBouncer with two connections, the others directly."""
    server: Any = shards.server_of("shard1")
    names = {name: name for name in POOLED}
    with run_pgbouncer(
        program, server.port, databases=names, users={server.user: server.password}
    ) as running:
        base = running.url.rpartition("/")[0].replace("postgresql+psycopg://", "postgresql://")
        options = {"engine": driver_options("psycopg", version=running.version)}
        routers = {
            name: DatabaseRouter(f"{base}/{name}", metrics=False, options=options)
            if name in POOLED
            else DatabaseRouter(url, metrics=False)
            for name, url in shards.urls.items()
        }
        database = ShardedDatabase(shards.directory_url, routers)
        yield database
        database.close()
        for router in routers.values():
            router.close()


def test_claims_of_many_clients_on_few_connections(pooled: ShardedDatabase, shards: Shards) -> None:
    users = [shards.user_on(shard) for shard in shards.urls for _ in range(4)]
    errors: list[str] = []

    def work(number: int) -> None:
        try:
            for round_ in range(8):
                user = users[(number + round_) % len(users)]
                with pooled.session_for(user) as session:
                    session.add(Order(user_id=user, plain="pooled"))
                    session.commit()
                    session.add(Order(user_id=user, plain="pooled"))
                with pooled.session_for(user, read_only=True) as session:
                    count = select(func.count()).where(Order.user_id == user)
                    assert (session.scalar(count) or 0) >= 2
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors[:2]
    written = pooled.query_all(select(Order.user_id).where(Order.plain == "pooled")).scalars()
    counts = Counter(written)
    assert sum(counts.values()) == 10 * 8 * 2
    for user in users:
        place = shards.store.load().place(user)
        query = f"SELECT count(*) FROM orders WHERE user_id = {user} AND bucket = {place.bucket}"
        assert shards.execute(place.shard, query) == [(counts[user],)]
    for shard in shards.urls:
        shards.execute(shard, "DELETE FROM orders WHERE plain = 'pooled'")
