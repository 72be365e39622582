"""Four shards on two real servers, with a directory on a third."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tenfold.database import DatabaseRouter
from tenfold.settings import Settings, StackSettings
from tenfold.sharding import DirectoryStore, ShardedDatabase, parse_shard_urls
from tenfold.sharding.administration import push
from tenfold.sharding.directory import Directory
from tenfold.sharding.settings import ShardingSettings
from tenfold.stack import Stack, programs
from tests.database.conftest import own_folder
from tests.sharding.support.models import Base
from tests.support.waiting import eventually

_users = itertools.count(1)


class Shards:
    """The running shards, their directory, and what tests do to them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.urls = parse_shard_urls(stack.environment["SHARD_URLS"])
        self.directory_url = stack.environment["SHARD_DIRECTORY_URL"]
        self.store = DirectoryStore(self.directory_url)
        self.servers: list[Any] = [one for one in stack.servers if one.kind == "shard server"]
        self.primary: Any = next(one for one in stack.servers if one.kind == "primary")

    def server_of(self, shard: str) -> Any:
        return next(server for server in self.servers if shard in server.shards)

    def execute(self, shard: str, *statements: str) -> list[Any]:
        """Run statements on a shard, in one transaction; return the rows of the last."""
        with psycopg.connect(self.urls[shard]) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def user_on(self, shard: str) -> int:
        """A key that no other test has, on this shard."""
        directory = self.store.load()
        return next(user for user in _users if directory.place(user).shard == shard)

    def home(self, user: int) -> list[str]:
        """The shards that have rows of this user."""
        query = f"SELECT count(*) FROM orders WHERE user_id = {user}"
        return [name for name in self.urls if self.execute(name, query)[0][0]]

    def move(self, bucket: int, target: str, *, between: Callable[[], object] = lambda: None) -> Directory:
        """Move a bucket with its rows; meanwhile no shard has it."""
        former = self.store.load()
        source = former.buckets[bucket].shard
        directory = former.move(bucket, target)
        self.store.save(directory)
        push(directory, source, self.urls[source])
        with psycopg.connect(self.urls[source]) as old, psycopg.connect(self.urls[target]) as new:
            new.execute("SET session_replication_role = replica")  # triggers are for the service
            for table in ("orders", "lines"):
                rows = old.execute(f"SELECT * FROM {table} WHERE bucket = {bucket}")
                names = [column.name for column in rows.description or ()]
                marks = ", ".join(["%s"] * len(names))
                insert = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT DO NOTHING"
                new.cursor().executemany(insert.encode(), rows.fetchall())
        between()
        push(directory, target, self.urls[target])
        return directory

    def kill(self, server: Any) -> None:
        for pid in server.pids():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not server.pids())


@pytest.fixture(scope="package")
def shards() -> Iterator[Shards]:
    if not programs.find_postgresql(Settings()):
        missing = "PostgreSQL is missing: pip install 'tenfold[stack]'"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    settings = Settings(
        stack=StackSettings(redis=False, nginx=False), sharding=ShardingSettings(shards=4, servers=2)
    )
    stack = Stack(settings)
    with own_folder():
        folder = Path(tempfile.gettempdir())
        stack.start()
    try:
        found = Shards(stack)
        for server in found.servers:  # so that a test may switch triggers off
            with psycopg.connect(server.admin_url, autocommit=True) as connection:
                connection.execute("grant set on parameter session_replication_role to shards")
        for url in found.urls.values():
            router = DatabaseRouter(url, metrics=False)
            with router.write() as session:
                Base.metadata.create_all(session.connection())
            router.close()
        yield found
        found.store.close()
    finally:
        stack.stop()
        shutil.rmtree(folder)


@pytest.fixture
def make_database(shards: Shards) -> Iterator[Callable[..., ShardedDatabase]]:
    """A factory of databases over the shards, closed afterwards."""
    with ExitStack() as exits:

        def make(driver: str = "psycopg", **options: Any) -> ShardedDatabase:
            routers = {
                name: DatabaseRouter(url.replace("postgresql://", f"postgresql+{driver}://"), metrics=False)
                for name, url in shards.urls.items()
            }
            database = ShardedDatabase(options.pop("directory", shards.directory_url), routers, **options)
            exits.callback(database.close)
            for router in routers.values():
                exits.callback(router.close)
            return database

        yield make


@pytest.fixture
def database(make_database: Callable[..., ShardedDatabase]) -> ShardedDatabase:
    return make_database()
