"""What goes wrong is said: writes through readers, commits whose outcome nobody knows, arguments."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenfold.database import DatabaseRouter, FreshnessLimits, HealthLimits
from tenfold.database.deadlines import enforce_deadlines
from tenfold.deadlines import deadline
from tenfold.errors import (
    CommitUnknownError,
    DeadlineExceededError,
    NoReplicaError,
    ReadOnlyError,
    SettingsError,
)
from tests.database.conftest import Servers, eventually
from tests.database.proxy import Proxy

Route = Callable[..., DatabaseRouter]

BUMP = text("update counters set value = value + 1 where id = :id returning value")


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "counters"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


@pytest.mark.parametrize("replicas", [True, False])
def test_a_write_through_a_reader_is_refused_in_one_sentence(
    servers: Servers, route: Route, replicas: bool
) -> None:
    primary, some = servers.urls
    router = route((primary, some if replicas else []))
    with pytest.raises(ReadOnlyError, match=r"router\.write"), router.read() as session:
        session.execute(BUMP, {"id": 1})
    with pytest.raises(ReadOnlyError, match=r"router\.write"), router.read() as session:
        session.add(Counter(id=1000, value=1))
        session.commit()
    with router.read() as session:
        assert session.get(Counter, 1000) is None


def test_options_for_the_driver_do_not_open_readers_for_writes(servers: Servers, route: Route) -> None:
    options = {"connect_args": {"options": "-c work_mem=7MB"}}
    for engine in (options, lambda url: options):
        router = route(servers.urls, options={"engine": engine})
        with pytest.raises(ReadOnlyError), router.read() as session:
            session.execute(BUMP, {"id": 1})
        for scope in (router.read(), router.write(), router.analytics()):
            with scope as session:
                assert session.scalar(text("show work_mem")) == "7MB"


def test_a_write_through_an_async_reader_is_refused_too(servers: Servers, route: Route) -> None:
    router = route(servers.urls)

    async def scenario() -> None:
        with pytest.raises(ReadOnlyError):
            async with router.read() as session:
                await session.execute(BUMP, {"id": 1})
        await router.aclose()

    asyncio.run(scenario())


def test_what_a_block_writes_is_committed_at_its_end_or_not_at_all(servers: Servers, route: Route) -> None:
    router = route(servers.urls)
    with pytest.raises(ZeroDivisionError), router.write() as session:
        session.add(Counter(id=2000, value=1))
        session.flush()
        raise ZeroDivisionError
    with router.write() as session:
        assert session.get(Counter, 2000) is None
        session.add(Counter(id=2001, value=5))
    with router.write() as session:
        assert session.get(Counter, 2001).value == 5
        session.delete(session.get(Counter, 2001))


@pytest.fixture
def proxy(servers: Servers) -> Iterator[Proxy]:
    made = Proxy(servers.primary.port)
    yield made
    made.close()


def through(proxy: Proxy, servers: Servers) -> tuple[str, list[str]]:
    primary, replicas = servers.urls
    return primary.replace(str(servers.primary.port), str(proxy.port)), replicas


def value(servers: Servers, row: int) -> int:
    return servers.primary.ask(f"select value from counters where id = {row}")[0][0]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_commit_whose_answer_is_lost_is_said_to_be_unknown_and_not_repeated(
    servers: Servers, route: Route, proxy: Proxy, asynchronous: bool
) -> None:
    router = route(through(proxy, servers), health=HealthLimits(sample_s=0))
    before = value(servers, 10)

    def scenario() -> None:
        with router.write() as session:
            written = session.execute(BUMP, {"id": 10}).scalar()
            assert written == before + 1
            proxy.cut_at = b"COMMIT"

    async def async_scenario() -> None:
        async with router.write() as session:
            await session.execute(BUMP, {"id": 10})
            proxy.cut_at = b"COMMIT"

    with router.seen() as seen:
        with pytest.raises(CommitUnknownError, match="nobody knows"):
            asyncio.run(async_scenario()) if asynchronous else scenario()
        proxy.cut_at = None
        assert proxy.cuts == 1
        # It was committed, as it happens; and whoever sent it reads that, on the primary.
        eventually(lambda: value(servers, 10) == before + 1)
        assert seen.token.position == 0
        with router.read() as session:
            row = session.execute(text("select value, inet_server_port() from counters where id = 10")).one()
        assert row == (before + 1, servers.primary.port)
        assert seen.token.position > 0
    assert value(servers, 10) == before + 1


def test_the_control_a_connection_lost_earlier_is_not_called_unknown(
    servers: Servers, route: Route, proxy: Proxy
) -> None:
    router = route(through(proxy, servers), health=HealthLimits(sample_s=0))
    with pytest.raises(DBAPIError) as caught, router.write() as session:
        session.execute(text("select 1"))
        proxy.cut_at = b"update"
        session.execute(BUMP, {"id": 11})
    assert not isinstance(caught.value, CommitUnknownError)


def test_a_position_that_could_not_be_asked_for_is_owed(servers: Servers, route: Route, proxy: Proxy) -> None:
    """The commit was acknowledged, then the line went: the next read is the primary's, and knows better."""
    router = route(through(proxy, servers), health=HealthLimits(sample_s=0))
    with servers.held_back(servers.replicas[0], 300), router.seen():
        with router.write() as session:
            written = session.execute(BUMP, {"id": 12}).scalar()
            proxy.cut_at = b"pg_current_wal_insert_lsn"
        proxy.cut_at = None
        for _ in range(5):
            with router.read() as session:
                assert session.get(Counter, 12).value == written


def test_reports_stay_off_the_primary(servers: Servers, route: Route) -> None:
    router = route(servers.urls)
    for _ in range(10):
        with router.analytics() as session:
            assert session.execute(text("select pg_is_in_recovery()")).scalar()
            assert session.execute(text("show statement_timeout")).scalar() == "0"
    with pytest.raises(NoReplicaError), route((servers.primary.url, [])).analytics() as session:
        session.execute(text("select 1"))


def test_the_primary_takes_so_many_stranded_reads_and_no_more(servers: Servers, route: Route) -> None:
    """No replica answers: the reads that the primary is spared are refused within a second."""
    nowhere = "postgresql://app@127.0.0.1:1/app"
    router = route((servers.primary.url, [nowhere]), primary_reads=2, health=HealthLimits(sample_s=0))
    with router.read() as one, router.read() as two:
        one.execute(text("select 1"))
        two.execute(text("select 1"))
        with pytest.raises(NoReplicaError, match="primary_reads"), router.read() as three:
            three.execute(text("select 1"))
    with router.read() as session:
        assert session.execute(text("select 1")).scalar() == 1


def test_a_forked_worker_has_connections_of_its_own(servers: Servers, route: Route) -> None:
    """A server that forks its workers after the app was loaded, and used: gunicorn --preload, Celery."""
    primary, replicas = servers.urls
    router = route((primary, replicas[:1]), health=HealthLimits(sample_s=0.05))
    backends = text("select pg_backend_pid()")

    def look() -> set[int]:
        with router.write() as writer, router.read() as reader:
            return {writer.execute(backends).scalar(), reader.execute(backends).scalar()}

    mine = look()
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            found = look()
            eventually(lambda: all(state["serving"] for state in router.servers().values()))
            os.write(theirs, repr(found).encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours) as pipe:
        others = ast.literal_eval(pipe.read())
    assert len(others) == 2
    assert not others & mine
    assert look() <= mine  # and the parent's still work


@pytest.mark.parametrize("asynchronous", [False, True])
def test_deadlines_hold_on_every_engine(servers: Servers, route: Route, asynchronous: bool) -> None:
    router = route(servers.urls)
    router.each_engine(enforce_deadlines)

    async def scenario() -> None:
        async with router.read() as session:
            await session.execute(text("select 1"))
        await router.aclose()

    def read() -> None:
        if asynchronous:
            asyncio.run(scenario())
        else:
            with router.read() as session:
                session.execute(text("select 1"))

    with deadline(5):
        read()
    with deadline(-1), pytest.raises(DeadlineExceededError):
        read()
    assert {state["in_flight"] for state in router.servers().values()} == {0}
    read()


def test_without_replicas_the_primary_serves_reads(servers: Servers, route: Route) -> None:
    router = route((servers.primary.url, []))
    with router.read() as session:
        assert not session.execute(text("select pg_is_in_recovery()")).scalar()


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (["no url", []], {}, "cannot be read"),
        (["sqlite://", []], {"choice": "best"}, "least, random, round-robin"),
        (["sqlite://", []], {"primary_reads": 0}, "primary_reads"),
        (["sqlite://", []], {"freshness": FreshnessLimits(token_s=5)}, "outlive"),
        (["sqlite://", []], {"keys": "short"}, "32"),
    ],
)
def test_arguments_that_cannot_be(arguments: list, options: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        DatabaseRouter(*arguments, **options)


def test_a_url_that_cannot_be_read_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        DatabaseRouter("postgresql:/app:secret@x")
    assert "secret" not in str(caught.value)


# ------------------------------------------------------------------ without positions


def sqlite(tmp_path: Path) -> tuple[str, list[str]]:
    names = [f"sqlite:///{tmp_path / name}" for name in ("primary.db", "replica.db")]
    for name in names:
        made = DatabaseRouter(name, [])
        with made.write() as session:
            session.execute(text("create table counters (id integer primary key, value integer)"))
            session.execute(text("insert into counters values (1, 0)"))
        made.close()
    return names[0], names[1:]


def test_where_there_are_no_positions_a_write_pins_to_the_primary_and_says_so(
    tmp_path: Path, route: Route, caplog: pytest.LogCaptureFixture
) -> None:
    router = route(sqlite(tmp_path), freshness=FreshnessLimits(pin_s=60))
    brief = route(sqlite_again(tmp_path), freshness=FreshnessLimits(pin_s=0))
    for made, expected in (
        (router, 1),
        (brief, 0),
    ):  # the second one is the control: the replica never follows
        with made.seen():
            with made.write() as session:
                session.execute(text("update counters set value = 1"))
            token = made.token()
        with made.seen(token), made.read() as session:
            assert session.execute(text("select value from counters")).scalar() == expected
        with made.read() as session:
            assert session.execute(text("select value from counters")).scalar() == 0
    assert caplog.text.count("no log positions") == 2


def test_where_the_functions_may_not_be_called_a_time_stands_in(
    servers: Servers, route: Route, caplog: pytest.LogCaptureFixture
) -> None:
    function = "function pg_control_system() from public"
    servers.tell(servers.primary, f"revoke execute on {function}")
    servers.caught_up()
    try:
        router = route(servers.urls, freshness=FreshnessLimits(pin_s=60), health=HealthLimits(sample_s=0.05))
        in_recovery = text("select pg_is_in_recovery()")
        with router.seen():
            with router.write() as session:
                session.execute(BUMP, {"id": 13})
            with router.read() as session:
                assert not session.execute(in_recovery).scalar()
        for _ in range(20):  # the sampler learns of it too, and takes nobody out for it
            with router.read() as session:
                assert session.execute(in_recovery).scalar()
            time.sleep(0.01)
        assert "no log positions" in caplog.text
    finally:
        servers.tell(servers.primary, f"grant execute on {function.replace('from', 'to')}")
        servers.caught_up()


def sqlite_again(tmp_path: Path) -> tuple[str, list[str]]:
    return f"sqlite:///{tmp_path / 'primary.db'}", [f"sqlite:///{tmp_path / 'replica.db'}"]


def test_sqlite_readers_write_nothing_either(tmp_path: Path, route: Route) -> None:
    router = route(sqlite(tmp_path))
    with pytest.raises(ReadOnlyError), router.read() as session:
        session.execute(text("update counters set value = 1"))

    async def scenario() -> None:
        async with router.write() as session:
            await session.execute(text("update counters set value = 3"))
        with pytest.raises(ReadOnlyError):
            async with router.read() as session:
                await session.execute(text("update counters set value = 1"))
        await router.aclose()

    asyncio.run(scenario())
