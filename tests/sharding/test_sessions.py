"""Sessions for one key, with every driver: on the right shard, refused anywhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from tenfold.database import DatabaseRouter
from tenfold.errors import BucketMovedError, CrossShardError, SettingsError
from tenfold.sharding import DirectoryStore, ShardedDatabase, decode_id
from tenfold.sharding.directory import Directory
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Line, Order

DRIVERS = ["psycopg", "psycopg2", "psycopg async", "asyncpg"]


class Client:
    """Calls the same with and without asyncio: a block of a session is a function of a Session."""

    def __init__(self, database: ShardedDatabase, *, asynchronous: bool) -> None:
        self.database, self.asynchronous = database, asynchronous

    def session(
        self, key: Any, work: Callable[[Session], Any], *, by: str = "session_for", **options: Any
    ) -> Any:
        scope = getattr(self.database, by)(key, **options)
        if not self.asynchronous:
            with scope as session:
                return work(session)

        async def run() -> Any:
            async with scope as session:
                return await session.run_sync(work)

        return self._run(run())

    def run(self, key: Any, work: Callable[[Session], Any], **options: Any) -> Any:
        if not self.asynchronous:
            return self.database.run(key, work, **options)
        return self._run(self.database.run_async(key, lambda session: session.run_sync(work), **options))

    def all(self, statement: Any) -> Any:
        if not self.asynchronous:
            return self.database.query_all(statement)
        return self._run(self.database.query_all_async(statement))

    def _run(self, work: Any) -> Any:
        async def run() -> Any:
            try:
                return await work
            finally:
                for shard in self.database._shards.values():
                    await shard.aclose()  # type: ignore[attr-defined]

        return asyncio.run(run())


@pytest.fixture(params=DRIVERS)
def client(request: pytest.FixtureRequest, make_database: Callable[..., ShardedDatabase]) -> Client:
    driver, _, asynchronous = request.param.partition(" ")
    return Client(make_database(driver), asynchronous=bool(asynchronous) or driver == "asyncpg")


def place_order(user: int, **values: Any) -> Callable[[Session], int]:
    def work(session: Session) -> int:
        order = Order(user_id=user, **values)
        session.add(order)
        session.flush()
        return order.id

    return work


def test_row_is_on_the_shard_of_its_key(client: Client, shards: Shards) -> None:
    for shard in shards.urls:
        user = shards.user_on(shard)
        order_id = client.session(user, place_order(user, total=3))
        assert shards.home(user) == [shard]
        assert decode_id(order_id).bucket == shards.store.load().place(user).bucket
        query = select(Order.total).where(Order.user_id == user)
        assert client.session(user, lambda session, query=query: session.scalar(query)) == 3
        assert client.session(user, lambda session, query=query: session.scalar(query), read_only=True) == 3
        found = client.session(
            order_id, lambda session, i=order_id: session.get(Order, i).user_id, by="session_for_id"
        )
        assert found == user


def test_every_way_to_insert_gets_the_bucket(client: Client, shards: Shards) -> None:
    user = shards.user_on("shard2")

    def work(session: Session) -> None:
        session.execute(insert(Order).values(user_id=user))
        session.execute(insert(Order), [{"user_id": user}, {"user_id": user}])
        session.execute(
            text("INSERT INTO orders (user_id, total, plain) VALUES (:user, 0, '')"), {"user": user}
        )
        session.commit()  # the next transaction has to claim the bucket anew
        session.execute(insert(Order).values(user_id=user))
        with session.begin_nested():
            session.add(Order(user_id=user, lines=[Line(number=1, user_id=user, product="tea")]))

    client.session(user, work)
    bucket = shards.store.load().place(user).bucket
    assert shards.execute("shard2", f"SELECT bucket FROM orders WHERE user_id = {user}") == [(bucket,)] * 6
    assert shards.execute("shard2", f"SELECT bucket FROM lines WHERE user_id = {user}") == [(bucket,)]


def test_exception_rolls_the_session_back(client: Client, shards: Shards) -> None:
    user = shards.user_on("shard1")

    def work(session: Session) -> None:
        place_order(user)(session)
        raise LookupError

    with pytest.raises(LookupError):
        client.session(user, work)
    assert shards.home(user) == []


def other_keys_row(user: int, other: int) -> dict[str, Callable[[Session], Any]]:
    return {
        "insert": place_order(other),
        "insert as SQL": lambda session: session.execute(
            text(f"INSERT INTO orders (user_id, total, plain) VALUES ({other}, 0, '')")
        ),
        "update": lambda session: session.execute(
            update(Order).where(Order.user_id == other).values(total=9)
        ),
        "delete": lambda session: session.execute(delete(Order).where(Order.user_id == other)),
        "change of the key": lambda session: session.execute(
            update(Order).where(Order.user_id == user).values(user_id=other)
        ),
        "change of the bucket": lambda session: session.execute(
            update(Order).where(Order.user_id == user).values(bucket=Order.bucket + 1)
        ),
    }


@pytest.mark.guarantee(
    "a session writes rows of its own key only", pattern="sharding", under="wrong statements"
)
@pytest.mark.parametrize("how", other_keys_row(0, 0))
def test_row_of_another_key_is_refused(client: Client, shards: Shards, how: str) -> None:
    user, other = (
        shards.user_on("shard1"),
        shards.user_on("shard1"),
    )  # on one shard, where it could go unnoticed
    for each in (user, other):
        client.session(each, place_order(each, total=1))
    with pytest.raises(CrossShardError, match="let an outbox task write the others"):
        client.session(user, other_keys_row(user, other)[how])
    rows = shards.execute("shard1", f"SELECT user_id, total FROM orders WHERE user_id IN ({user}, {other})")
    assert sorted(rows) == sorted([(user, 1), (other, 1)])


@pytest.mark.control("a session writes rows of its own key only", "without the triggers")
def test_the_control_without_triggers_another_keys_row_is_written(
    database: ShardedDatabase, shards: Shards
) -> None:
    user, other = shards.user_on("shard1"), shards.user_on("shard1")
    with database.session_for(user) as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        bucket = shards.store.load().place(other).bucket
        session.execute(insert(Order).values(user_id=other, bucket=bucket))
    assert shards.home(other) == ["shard1"]


def test_check_refuses_a_wrong_bucket_without_triggers(database: ShardedDatabase, shards: Shards) -> None:
    user, other = shards.user_on("shard1"), shards.user_on("shard2")
    with pytest.raises(CrossShardError), database.session_for(user) as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(insert(Order).values(user_id=other))


@pytest.mark.guarantee(
    "a row is only ever on the shard that owns its bucket", pattern="sharding", under="raw SQL"
)
def test_shard_refuses_a_row_of_a_bucket_that_it_does_not_have(shards: Shards) -> None:
    user = shards.user_on("shard1")
    bucket = shards.store.load().place(user).bucket
    insert_row = f"INSERT INTO orders (bucket, id, user_id, total, plain) VALUES ({bucket}, 1, {user}, 0, '')"
    with pytest.raises(Exception, match=f"a row of bucket {bucket} does not belong to this shard"):
        shards.execute("shard2", insert_row)
    assert shards.home(user) == []


@pytest.mark.control("a row is only ever on the shard that owns its bucket", "without the triggers")
def test_the_control_without_triggers_a_row_is_on_the_wrong_shard(shards: Shards) -> None:
    user = shards.user_on("shard1")
    bucket = shards.store.load().place(user).bucket
    insert_row = f"INSERT INTO orders (bucket, id, user_id, total, plain) VALUES ({bucket}, 1, {user}, 0, '')"
    off = "SET LOCAL session_replication_role = replica"
    shards.execute("shard2", off, insert_row)
    assert shards.home(user) == ["shard2"]
    shards.execute("shard2", off, f"DELETE FROM orders WHERE user_id = {user}")


@pytest.mark.guarantee(
    "a process with an older directory reads and writes nothing", pattern="sharding", under="a moved bucket"
)
def test_moved_bucket_is_noticed_before_the_block(client: Client, shards: Shards) -> None:
    user = shards.user_on("shard1")
    client.session(user, place_order(user, total=5))  # the directory is known from here on
    shards.move(shards.store.load().place(user).bucket, "shard2")
    ran = []
    for options in ({}, {"read_only": True}):
        with pytest.raises(BucketMovedError, match=r"use run\(\)"):
            client.session(user, ran.append, **options)
    assert not ran
    total = select(Order.total).where(Order.user_id == user)
    assert client.run(user, lambda session: session.scalar(total)) == 5
    client.session(user, place_order(user))  # what run() learnt is known to all
    assert shards.execute("shard2", f"SELECT count(*) FROM orders WHERE user_id = {user}") == [(2,)]


@pytest.mark.control("a process with an older directory reads and writes nothing", "without the claim")
def test_the_control_without_the_claim_the_old_shard_is_read(
    database: ShardedDatabase, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = shards.user_on("shard1")
    database.run(user, place_order(user, total=5))
    shards.move(shards.store.load().place(user).bucket, "shard2")
    shards.execute("shard2", f"UPDATE orders SET total = 6 WHERE user_id = {user}")
    monkeypatch.setattr("tenfold.sharding.database._LOOK", text("SELECT 1, :bucket, :epoch"))
    with database.session_for(user, read_only=True) as session:
        assert session.scalar(select(Order.total).where(Order.user_id == user)) == 5  # stale


def test_bucket_moves_only_after_transactions_that_use_it(database: ShardedDatabase, shards: Shards) -> None:
    user = shards.user_on("shard3")
    with database.session_for(user) as session:
        place_order(user)(session)
        locked = "SELECT tenfold.claim(0::smallint, 0)"
        with pytest.raises(Exception, match="not here in epoch 0"):
            shards.execute("shard3", locked)
        bucket = shards.store.load().place(user).bucket
        with pytest.raises(Exception, match="lock timeout"):
            shards.execute(
                "shard3",
                "SET LOCAL lock_timeout = '50ms'",
                f"UPDATE tenfold.buckets SET owned = false WHERE bucket = {bucket}",
            )
    assert shards.home(user) == ["shard3"]


def test_run_waits_for_a_bucket_that_is_moving(client: Client, shards: Shards) -> None:
    user = shards.user_on("shard4")
    client.session(user, place_order(user))
    calls = []

    def work(session: Session) -> int:
        calls.append(1)
        return place_order(user)(session)

    def while_no_shard_owns_it() -> None:
        with pytest.raises(BucketMovedError):
            client.session(user, lambda session: None)

    shards.move(shards.store.load().place(user).bucket, "shard3", between=while_no_shard_owns_it)
    client.run(user, work)
    assert calls == [1]
    assert shards.execute("shard3", f"SELECT count(*) FROM orders WHERE user_id = {user}") == [(2,)]


def test_error_in_the_function_is_not_repeated(client: Client, shards: Shards) -> None:
    user = shards.user_on("shard4")
    calls = []

    def work(session: Session) -> None:
        calls.append(1)
        raise BucketMovedError("its own")

    with pytest.raises(BucketMovedError, match="its own"):
        client.run(user, work)
    assert calls == [1]


# ------------------------------------------------------------------ what a shard can be given as


def test_engines_and_sessionmakers_are_shards(shards: Shards) -> None:
    urls = {name: url.replace("postgresql:", "postgresql+psycopg:") for name, url in shards.urls.items()}
    engines = {name: create_engine(url) for name, url in urls.items()}
    user = shards.user_on("shard2")
    for given in (engines, {name: sessionmaker(engine) for name, engine in engines.items()}):
        database = ShardedDatabase(shards.directory_url, given)
        with database.session_for(user) as session:
            session.add(Order(user_id=user))
        assert len(database.query_all(select(Order).where(Order.user_id == user)).all()) >= 1
        database.close()
    for engine in engines.values():
        engine.dispose()
    assert shards.execute("shard2", f"SELECT count(*) FROM orders WHERE user_id = {user}") == [(2,)]


def test_asyncio_engines_are_shards(shards: Shards) -> None:
    async def work() -> list[int]:
        urls = {name: url.replace("postgresql:", "postgresql+asyncpg:") for name, url in shards.urls.items()}
        engines = {name: create_async_engine(url) for name, url in urls.items()}
        database = ShardedDatabase(shards.directory_url, engines)
        user = shards.user_on("shard1")
        async with database.session_for(user) as session:
            session.add(Order(user_id=user, total=8))
        with pytest.raises(SettingsError, match="write `async with`"), database.session_for(user):
            pass
        result = await database.query_all_async(select(Order.total).where(Order.user_id == user))
        database.close()
        for engine in engines.values():
            await engine.dispose()
        return list(result.scalars())

    assert asyncio.run(work()) == [8]


def test_something_else_is_no_shard(shards: Shards) -> None:
    with pytest.raises(SettingsError, match="shard one is a str: pass a DatabaseRouter, an engine"):
        ShardedDatabase(shards.directory_url, {"one": "postgresql://localhost/x"})
    with pytest.raises(SettingsError, match="needs its shards by name"):
        ShardedDatabase(shards.directory_url, {})


def test_new_shard_without_buckets_is_not_asked(shards: Shards) -> None:
    """It is in the directory before its tables are there, and before every process has its URL."""

    class Store(DirectoryStore):
        def load(self, known: Directory | None = None) -> Directory:
            return shards.store.load().add_shards(["later"])

    routers = {name: DatabaseRouter(url, metrics=False) for name, url in shards.urls.items()}
    database = ShardedDatabase(Store(shards.directory_url), routers, count_load=False)
    database.query_all(select(Order).limit(1))
    for router in routers.values():
        router.close()


def test_threads_are_those_of_the_process(database: ShardedDatabase) -> None:
    database.query_all(select(Order).limit(1))
    before = database._pool
    assert database._pool is before
    database._pid = 0  # as in the child of a fork, where none of the threads runs
    assert database._pool is not before


def test_shard_without_url_is_named(shards: Shards) -> None:
    router = DatabaseRouter(shards.urls["shard1"], metrics=False)
    database = ShardedDatabase(shards.directory_url, {"shard1": router})
    with (
        pytest.raises(SettingsError, match="the directory has a shard shard2"),
        database.session_for(shards.user_on("shard2")),
    ):
        pass
    with pytest.raises(SettingsError, match="which this service has no URL for"):
        database.query_all(select(Order))
    database.close()
    router.close()
