"""The real PgBouncer with what was rendered for it, in front of a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.database import pool_options
from tenfold.database.pools.pgbouncer import PgBouncer, driver_options, render
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError
from tenfold.stack.run_as import unprivileged_account
from tests.measure import conftest
from tests.support.waiting import eventually

postgres_url = conftest.postgres_url
PREPARES = (1, 22)  # from there on psycopg's prepared statements work behind it
ANYWHERE = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian has it, off most users' PATH


class Program(NamedTuple):
    """An installed PgBouncer."""

    path: str
    version: tuple[int, int]


class Running(NamedTuple):
    """A running PgBouncer with two connections to the server."""

    url: str
    version: tuple[int, int]


def found(name: str) -> Program | None:
    path = shutil.which(name, path=ANYWHERE)
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    numbers = re.search(r"(\d+)\.(\d+)", said)
    assert numbers is not None
    return Program(path, (int(numbers[1]), int(numbers[2])))


@pytest.fixture(scope="module", params=["pgbouncer", "pgbouncer-debian-13"])
def program(request: pytest.FixtureRequest, requires_server: Callable[[Any, str], Program]) -> Program:
    """The PgBouncer of this system, and a newer one that .ci/run unpacks."""
    return requires_server(found(request.param), request.param)


@pytest.fixture(scope="module")
def behind(postgres_url: str) -> int:
    """The port of a server with a role and a database whose names are awkward."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'pooled'").fetchone():
            connection.execute("CREATE ROLE pooled LOGIN PASSWORD 'p\"w'' d'")
            connection.execute('CREATE DATABASE "it\'s" OWNER pooled')
        return connection.info.port


@contextmanager
def running(program: Program, behind: int, *changed: str) -> Iterator[Running]:
    """Run a PgBouncer, with lines of its pgbouncer.ini ``changed``."""
    port = conftest.free_port()
    pooler = PgBouncer(
        host="127.0.0.1",
        port=behind,
        databases={"shop": "it's"},
        users={"pooled": "p\"w' d"},
        max_db_connections=2,
        listen_port=port,
        version=program.version,
    )
    folder = Path(tempfile.mkdtemp(prefix="tenfold-"))
    for file in render(pooler):
        more = "".join(f"{line}\n" for line in changed) if file.path.suffix == ".ini" else ""
        (folder / file.path).write_text(file.text + more)
    account = unprivileged_account()
    if account is not None:
        for place in (folder, *folder.iterdir()):
            os.chown(place, account.uid, account.gid)
    process = subprocess.Popen(
        [program.path, "pgbouncer.ini"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        **({"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}),
    )
    url = f"postgresql+psycopg://pooled:p%22w%27%20d@127.0.0.1:{port}/shop"
    try:
        eventually(lambda: process.poll() is not None or _accepts(url))
        yield Running(url, program.version)
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url.replace("+psycopg", ""), connect_timeout=1).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(scope="module")
def pooled(program: Program, behind: int) -> Iterator[Running]:
    with running(program, behind) as pooler:
        yield pooler


def options(pooled: Running, **changed: Any) -> dict[str, Any]:
    closes = psycopg.capabilities.has_send_close_prepared()
    matching = driver_options("psycopg", version=pooled.version, closes_prepared=closes)
    return pool_options(pooled.url, **{"metrics": False, "timeout_s": 30.0, **matching, **changed})


async def many(pooled: Running, **changed: Any) -> None:
    """Ten clients at once, each with the same statement often enough to be prepared."""
    engine = create_async_engine(pooled.url, **options(pooled, **changed))

    async def client() -> None:
        async with engine.connect() as connection:
            for number in range(12):
                query = text("SELECT :number + 0 FROM pg_sleep(0.002)")
                assert await connection.scalar(query, {"number": number}) == number
                await connection.commit()

    try:
        # All end by themselves: one that was cancelled could keep its connection until garbage is collected.
        for error in await asyncio.gather(*(client() for _ in range(10)), return_exceptions=True):
            if error is not None:
                raise error
    finally:
        await engine.dispose()


@pytest.mark.guarantee(
    "PgBouncer's clients do not disturb each other", pattern="pools", under="ten clients on two connections"
)
def test_many_clients_share_few_connections(pooled: Running, behind: int, postgres_url: str) -> None:
    asyncio.run(many(pooled))
    with psycopg.connect(postgres_url) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'pooled'"
        assert (connection.execute(query).fetchone() or (0,))[0] <= 2


def prepared(pooled: Running) -> int:
    """The number of prepared statements on the server's connections after many clients."""
    asyncio.run(many(pooled))
    engine = create_engine(pooled.url, **options(pooled))
    with engine.connect() as connection:
        count = connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    engine.dispose()
    assert isinstance(count, int)
    return count


@pytest.mark.guarantee("PgBouncer's clients do not disturb each other")
def test_statements_are_prepared_where_it_keeps_them_apart(pooled: Running) -> None:
    closes = psycopg.capabilities.has_send_close_prepared()
    assert (prepared(pooled) > 0) == (pooled.version >= PREPARES and closes)


@pytest.mark.control("PgBouncer's clients do not disturb each other")
def test_the_control_without_max_prepared_statements_they_break(program: Program, behind: int) -> None:
    apart = program.version >= (1, 21)
    broken = pytest.raises(DBAPIError, match="prepared statement")
    with running(program, behind, *["max_prepared_statements = 0"] * apart) as pooler, broken:
        asyncio.run(many(pooler, connect_args={"prepare_threshold": 1}))


def shown_to_the_next(pooled: Running, **changed: Any) -> str:
    """The statement_timeout that a client finds after another with a deadline of five seconds."""
    first = create_engine(pooled.url, **options(pooled, **changed))
    other = create_engine(pooled.url, **options(pooled, statement_timeout="off"))
    with deadline(5), first.connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) != "0"
    with other.connect() as connection, other.connect() as another:
        shown = {str(each.scalar(text("SHOW statement_timeout"))) for each in (connection, another)}
    for engine in (first, other):
        engine.dispose()
    return max(shown)


@pytest.mark.guarantee("PgBouncer's clients do not disturb each other")
def test_transaction_timeout_ends_with_its_transaction(pooled: Running) -> None:
    assert shown_to_the_next(pooled) == "0"
    engine = create_engine(pooled.url, **options(pooled))
    late = pytest.raises(DeadlineExceededError)
    with deadline(0.2), engine.connect() as connection, late:
        connection.execute(text("SELECT pg_sleep(5)"))
    engine.dispose()


@pytest.mark.control("PgBouncer's clients do not disturb each other")
def test_the_control_session_timeout_leaks_to_the_next_client(program: Program, behind: int) -> None:
    with running(program, behind) as pooler:
        assert shown_to_the_next(pooler, statement_timeout="session") == "5624ms"
