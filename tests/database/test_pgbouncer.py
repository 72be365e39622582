"""PgBouncer: what is rendered, what is refused, and the real one in front of a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.database import pgbouncer, pool_options
from tenfold.database.budget import Fleet, Room
from tenfold.database.pgbouncer import PgBouncer, driver_options, render, sized
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError, SettingsError
from tenfold.stack.account import unprivileged
from tests.database.pgbouncer_files import UnreadableError, read_databases, read_ini, read_users
from tests.measure import conftest

postgres_url = conftest.postgres_url
PLAIN = {"host": "db.internal", "databases": {"shop": "shop"}, "users": {"shop": "secret"}}


def pooler(**changed: Any) -> PgBouncer:
    return PgBouncer(**{**PLAIN, **changed})  # type: ignore[arg-type]


def rendered(**changed: Any) -> dict[str, str]:
    return {str(file.path): file.text for file in render(pooler(**changed))}


# ------------------------------------------------------------------ rendering


def test_what_is_rendered() -> None:
    files = rendered(most=90, clients=2000)
    lines = files["pgbouncer.ini"].splitlines()
    assert lines[1] == "shop = host=db.internal port=5432 dbname='shop'"
    assert {"pool_mode = transaction", "max_db_connections = 90", "max_client_conn = 2000"} <= set(lines)
    assert files["userlist.txt"] == '"shop" "secret"\n'
    assert "secret" not in files["pgbouncer.ini"]
    assert "secret" not in repr(PgBouncer(**PLAIN))  # type: ignore[arg-type]


@pytest.mark.parametrize(("version", "known"), [((1, 18), False), ((1, 20), False), ((1, 21), True)])
def test_an_old_version_is_not_told_of_prepared_statements(version: tuple[int, int], known: bool) -> None:
    assert ("max_prepared_statements" in rendered(version=version)["pgbouncer.ini"]) is known


@pytest.mark.parametrize(
    ("driver", "version", "closes", "expected"),
    [
        ("psycopg", (1, 18), True, {"prepare_threshold": None}),
        ("psycopg", (1, 21), True, {"prepare_threshold": None}),
        ("psycopg", (1, 22), False, {"prepare_threshold": None}),
        ("psycopg", (1, 22), True, None),
        ("psycopg2", (1, 18), False, None),
        ("asyncpg", (1, 18), False, {"statement_cache_size": 0, "prepared_statement_cache_size": 0}),
        ("asyncpg", (1, 21), False, None),
    ],
)
def test_the_options_that_match(
    driver: str, version: tuple[int, int], closes: bool, expected: dict[str, Any] | None
) -> None:
    options = driver_options(driver, version=version, closes_prepared=closes)
    assert options.pop("statement_timeout") == "transaction"
    assert options.get("connect_args") == expected


def test_how_large() -> None:
    fleet = Fleet(hosts=4, workers=8)
    assert sized(fleet, Room()) == (87, 970)
    with pytest.raises(SettingsError, match="leaves none for PgBouncer"):
        sized(fleet, Room(max_connections=13))


HOSTILE = [
    {"host": "db\nlisten_addr = *"},
    {"host": "db password=x"},
    {"host": ""},
    {"listen": "127.0.0.1\nauth_type = any"},
    {"databases": {"shop = host=evil\n*": "shop"}},
    {"databases": {"pgbouncer": "shop"}},
    {"databases": {"*": "shop"}},
    {"databases": {"%include /etc/passwd": "shop"}},
    {"databases": {"shop": "shop\nx"}},
    {"databases": {}},
    {"users": {}},
    {"users": {"shop": "a\nb"}},
    {"users": {"shop": "\udcff"}},
    {"databases": {"shop": "\ud800"}},
    {"userlist": "\udcff"},
    {"users": {"": "x"}},
    {"users": {"shop": ""}},
    {"userlist": "users\nauth_type = any"},
]


def misread(meant: PgBouncer, files: dict[str, str]) -> list[str]:
    """What PgBouncer would read in these files that was not meant."""
    try:
        "".join(files.values()).encode()
        settings = read_ini(files["pgbouncer.ini"])["pgbouncer"]
        databases = read_databases(files["pgbouncer.ini"])
        users = read_users(files["userlist.txt"])
    except (UnreadableError, UnicodeEncodeError) as error:
        return [str(error)]
    place = [("host", meant.host), ("port", str(meant.port))]
    ours = {"listen_addr": meant.listen, "auth_file": meant.userlist}
    plain = read_ini(rendered()["pgbouncer.ini"])["pgbouncer"]
    found = {
        "settings": settings == [(key, ours.get(key, value)) for key, value in plain],
        "databases": databases
        == [(alias, [*place, ("dbname", name)]) for alias, name in meant.databases.items()],
        "users": users == list(meant.users.items()),
    }
    return [what for what, as_meant in found.items() if not as_meant]


def test_what_is_plain_is_read_as_it_was_meant() -> None:
    assert misread(pooler(), rendered()) == []


@pytest.mark.parametrize("changed", HOSTILE, ids=str)
def test_what_cannot_be_written_safely_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        rendered(**changed)


@pytest.mark.parametrize("changed", HOSTILE, ids=str)
def test_the_control_what_is_refused_would_be_misread(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for guard in ("_alias", "_address", "_path"):
        monkeypatch.setattr(pgbouncer, guard, str)
    monkeypatch.setattr(pgbouncer, "_controls", lambda _: False)
    monkeypatch.setattr(pgbouncer, "_quoted", lambda text, **_: '"' + text.replace('"', '""') + '"')
    meant = pooler(**changed)
    files = {"pgbouncer.ini": pgbouncer._ini(meant), "userlist.txt": pgbouncer._userlist(meant.users)}
    assert misread(meant, files)


TELLING = st.sampled_from("'\"\\ ;#%=*[]\n") | st.characters(exclude_categories=["Cs"])
TEXTS = st.tuples(*[st.text(TELLING, min_size=1, max_size=20)] * 3)


def injects(name: str, user: str, password: str) -> list[str]:
    """What of a database's name, a user and a password is written and then misread."""
    changed = {"databases": {"shop": name}, "users": {user: password}}
    try:
        files = rendered(**changed)
    except SettingsError:
        return []
    return misread(pooler(**changed), files)


@given(TEXTS)
def test_no_text_opens_a_line_or_a_value_of_its_own(texts: tuple[str, str, str]) -> None:
    assert injects(*texts) == []


@pytest.mark.parametrize(
    ("guard", "without"),
    [
        ("_literal", lambda text: f"'{text}'"),
        ("_quoted", lambda text, **_: f'"{text}"'),
        ("_controls", lambda _: False),
    ],
)
def test_the_control_without_escapes_some_text_does(
    guard: str, without: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgbouncer, guard, without)
    search = hypothesis.settings(derandomize=True, database=None, max_examples=1000)
    assert hypothesis.find(TEXTS, lambda texts: bool(injects(*texts)), settings=search)


# ------------------------------------------------------------------ the real one


class Running:
    """A PgBouncer with two connections to the server; its users are let in by password."""

    def __init__(self, port: int, version: tuple[int, int]) -> None:
        self.version = version
        self.url = f"postgresql+psycopg://pooled:p%22w%27%20d@127.0.0.1:{port}/shop"


@pytest.fixture(scope="module")
def pooled(postgres_url: str, requires_server: Callable[[str | None, str], str]) -> Iterator[Running]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian has it, off most users' PATH
    program = requires_server(shutil.which("pgbouncer", path=path), "PgBouncer")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    numbers = re.search(r"(\d+)\.(\d+)", said)
    assert numbers is not None
    version = (int(numbers[1]), int(numbers[2]))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE pooled LOGIN PASSWORD 'p\"w'' d'")
        connection.execute('CREATE DATABASE "it\'s" OWNER pooled')
        server_port = connection.info.port
    port = conftest.free_port()
    files = rendered(
        host="127.0.0.1",
        port=server_port,
        databases={"shop": "it's"},
        users={"pooled": "p\"w' d"},
        most=2,
        listen_port=port,
        version=version,
    )
    folder = Path(tempfile.mkdtemp(prefix="tenfold-"))
    for name, written in files.items():
        (folder / name).write_text(written)
    account = unprivileged()
    if account is not None:
        for place in (folder, *folder.iterdir()):
            os.chown(place, account.uid, account.gid)
    process = subprocess.Popen(
        [program, "pgbouncer.ini"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        **({"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}),
    )
    running = Running(port, version)
    try:
        conftest.until(lambda: process.poll() is not None or _accepts(running.url))
        yield running
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
        await asyncio.gather(*(client() for _ in range(10)))
    finally:
        await engine.dispose()


def test_many_clients_share_few_connections(pooled: Running, postgres_url: str) -> None:
    asyncio.run(many(pooled))
    with psycopg.connect(postgres_url) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'pooled'"
        assert (connection.execute(query).fetchone() or (0,))[0] <= 2


def test_the_control_other_options_break(pooled: Running) -> None:
    if pooled.version >= (1, 21):
        pytest.skip("this PgBouncer keeps prepared statements apart")
    with pytest.raises(DBAPIError, match="prepared statement"):
        asyncio.run(many(pooled, connect_args={"prepare_threshold": 1}))


def shown_to_the_next(pooled: Running, **changed: Any) -> str:
    """Which statement_timeout another client finds after one with a deadline of five seconds."""
    first = create_engine(pooled.url, **options(pooled, **changed))
    other = create_engine(pooled.url, **options(pooled, statement_timeout="off"))
    with deadline(5), first.connect() as connection:
        assert connection.scalar(text("SHOW statement_timeout")) != "0"
    with other.connect() as connection, other.connect() as another:
        shown = {str(each.scalar(text("SHOW statement_timeout"))) for each in (connection, another)}
    for engine in (first, other):
        engine.dispose()
    return max(shown)


def test_a_deadline_ends_with_its_transaction(pooled: Running) -> None:
    assert shown_to_the_next(pooled) == "0"
    engine = create_engine(pooled.url, **options(pooled))
    late = pytest.raises(DeadlineExceededError)
    with deadline(0.2), engine.connect() as connection, late:
        connection.execute(text("SELECT pg_sleep(5)"))
    engine.dispose()


def test_the_control_a_sessions_timeout_is_handed_to_the_next(pooled: Running) -> None:
    assert shown_to_the_next(pooled, statement_timeout="session") == "5624ms"
