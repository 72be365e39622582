"""Shards that are killed, hang and come back: the others go on, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import select, text

from tenfold.database import DatabaseRouter
from tenfold.errors import ShardDownError, TenfoldError
from tenfold.sharding import ShardedDatabase
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Order
from tests.support.waiting import eventually


@pytest.mark.guarantee(
    "a shard that is down fails its own requests only, and loses no acknowledged write",
    pattern="sharding",
    under="kill -9 of its server",
)
def test_killed_shard_fails_alone(database: ShardedDatabase, shards: Shards) -> None:
    server = shards.server_of("shard1")
    users = [shards.user_on(shard) for shard in shards.urls for _ in range(2)]
    homes = {user: shards.store.load().place(user).shard for user in users}
    written: list[tuple[int, int]] = []
    errors: dict[str, list[Exception]] = {shard: [] for shard in shards.urls}
    stopping = threading.Event()

    def write() -> None:
        while not stopping.is_set():
            user, total = random.choice(users), random.randrange(10**9)
            try:
                with database.session_for(user) as session:
                    session.add(Order(user_id=user, total=total))
                written.append((user, total))
            except Exception as error:
                errors[homes[user]].append(error)
                time.sleep(0.01)

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(written) > 100)
        shards.kill(server)
        eventually(lambda: errors["shard1"] and errors["shard2"])
        before = len(written)
        eventually(lambda: len(written) > before + 100)
        with pytest.raises(ShardDownError, match=r"shard shard[12] does not answer"):
            database.query_all(select(Order.id).limit(1))
    finally:
        shards.stack.restart(server)
        recovered = len([one for one in written if homes[one[0]] == "shard1"])
        eventually(lambda: sum(homes[user] == "shard1" for user, _ in written) > recovered + 10)
        stopping.set()
        for thread in threads:
            thread.join(30)
    assert not errors["shard3"] and not errors["shard4"]
    for shard in server.shards:
        unknown = [error for error in errors[shard] if not isinstance(error, TenfoldError)]
        assert not unknown, unknown[:3]
        assert all("\n" not in str(error) for error in errors[shard])
    stored = {
        (row[0], row[1])
        for name in shards.urls
        for row in shards.execute(
            name, f"SELECT user_id, total FROM orders WHERE user_id = ANY(ARRAY{users})"
        )
    }
    assert set(written) <= stored


@pytest.mark.control(
    "a shard that is down fails its own requests only, and loses no acknowledged write",
    "without synchronous commit",
)
def test_the_control_without_synchronous_commit_an_acknowledged_write_is_lost(shards: Shards) -> None:
    """What the test above would find: PostgreSQL acknowledges, and is killed before it has written."""
    server = shards.server_of("shard1")
    router = DatabaseRouter(shards.urls["shard1"], metrics=False)
    database = ShardedDatabase(shards.directory_url, dict.fromkeys(shards.urls, router))
    user = shards.user_on("shard1")
    set_writer_delay(server, "alter system set wal_writer_delay = '10s'", "10s")  # or it writes by chance
    acknowledged = 0
    for _ in range(50):
        with database.session_for(user) as session:
            session.execute(text("SET LOCAL synchronous_commit = off"))
            session.add(Order(user_id=user))
        acknowledged += 1
    shards.kill(server)
    shards.stack.restart(server)
    set_writer_delay(server, "alter system reset wal_writer_delay", "200ms")
    ((stored,),) = shards.execute("shard1", f"SELECT count(*) FROM orders WHERE user_id = {user}")
    database.close()
    router.close()
    assert stored < acknowledged


def set_writer_delay(server: Any, statement: str, wanted: str) -> None:
    with psycopg.connect(server.admin_url, autocommit=True) as connection:
        connection.execute(statement.encode())
        connection.execute("select pg_reload_conf()")
    eventually(lambda: server.fetch("show wal_writer_delay")[0][0] == wanted)


def test_shard_that_hangs_is_not_asked_again_and_again(
    make_database: Callable[..., ShardedDatabase], shards: Shards
) -> None:
    server = shards.server_of("shard1")
    routers = {
        name: DatabaseRouter(
            url, metrics=False, options={"engine": {"connect_args": {"connect_timeout": 1}, "pool_size": 1}}
        )
        for name, url in shards.urls.items()
    }
    database = ShardedDatabase(shards.directory_url, routers)
    database.directory()
    hurt, fine = shards.user_on("shard1"), shards.user_on("shard3")
    for pid in server.pids():
        os.kill(pid, signal.SIGSTOP)
    try:
        said: list[str] = []

        def ask() -> None:
            try:
                with database.session_for(hurt):
                    pass
            except ShardDownError as error:
                said.append(str(error))

        eventually(lambda: ask() or any("it is asked again in" in one for one in said), within_s=30)
        started = time.monotonic()
        ask()
        assert time.monotonic() - started < 0.5
        with database.session_for(fine) as session:
            session.add(Order(user_id=fine))
    finally:
        for pid in server.pids():
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: ask() or (not said.clear() and _works(database, hurt)), within_s=20)
    database.close()
    for router in routers.values():
        router.close()


def _works(database: ShardedDatabase, user: int) -> bool:
    try:
        with database.session_for(user) as session:
            session.add(Order(user_id=user))
    except ShardDownError:
        return False
    return True


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "psycopg async", "asyncpg"])
def test_shard_that_is_down_is_named(driver: str, shards: Shards) -> None:
    name, _, asynchronous = driver.partition(" ")
    url = f"postgresql+{name}://u:secret-word@127.0.0.1:1/none"
    router = DatabaseRouter(url, metrics=False)
    database = ShardedDatabase(shards.directory_url, dict.fromkeys(shards.urls, router))
    user = shards.user_on("shard2")

    async def ask() -> None:
        async with database.session_for(user):
            pass

    async def ask_all() -> None:
        await database.query_all_async(select(Order.id))

    with pytest.raises(ShardDownError, match=r"^shard shard2 does not answer: ") as down:
        if asynchronous or name == "asyncpg":
            asyncio.run(ask())
        else:
            database.session_for(user).__enter__()
    assert "secret-word" not in str(down.value) and "\n" not in str(down.value)
    with pytest.raises(ShardDownError, match=r"^shard shard. does not answer"):
        asyncio.run(ask_all()) if asynchronous or name == "asyncpg" else database.query_all(select(Order.id))
    database.close()
    router.close()


def test_error_of_the_block_does_not_count_against_the_shard(
    database: ShardedDatabase, shards: Shards
) -> None:
    user = shards.user_on("shard4")
    for error in (OSError("a file of the service"), ValueError(), KeyboardInterrupt()):
        for _ in range(10):
            with pytest.raises(type(error)), database.session_for(user):
                raise error
    with pytest.raises(Exception, match="no_such_table"), database.session_for(user) as session:
        session.execute(text("SELECT * FROM no_such_table"))
    with database.session_for(user) as session:
        session.add(Order(user_id=user))


def test_cancelled_session_gives_its_connection_back(
    make_database: Callable[..., ShardedDatabase], shards: Shards
) -> None:
    database = make_database()
    user = shards.user_on("shard3")

    async def work() -> None:
        async def sleep() -> None:
            async with database.session_for(user) as session:
                session.add(Order(user_id=user))
                await session.flush()
                await asyncio.sleep(30)

        tasks = [asyncio.create_task(sleep()) for _ in range(5)]
        await asyncio.sleep(0.3)
        for task in tasks:
            task.cancel()
        results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in results)
        async with database.session_for(user) as session:
            assert (await session.execute(text("SELECT 1"))).scalar() == 1
        for shard in database._shards.values():
            await shard.aclose()  # type: ignore[attr-defined]

    asyncio.run(work())
    assert shards.home(user) == []
