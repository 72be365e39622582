"""Errors of the router: writes in read sessions, commits of unknown outcome, invalid arguments."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tenfold.database import DatabaseRouter, FreshnessLimits, HealthLimits
from tenfold.database.pools.statement_timeout import enforce_deadlines
from tenfold.deadlines import deadline
from tenfold.errors import (
    CommitUnknownError,
    DeadlineExceededError,
    NoReplicaError,
    ReadOnlyError,
    SettingsError,
)
from tests.database.conftest import Servers, in_threads
from tests.support.tcp_proxy import Proxy
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]

BUMP = text("update counters set value = value + 1 where id = :id returning value")


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "counters"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


def value(servers: Servers, row: int) -> int:
    return servers.primary.fetch(f"select value from counters where id = {row}")[0][0]


def bump(scope: AbstractContextManager[Session]) -> None:
    with scope as session:
        session.execute(BUMP, {"id": 1})
        session.commit()


def add(scope: AbstractContextManager[Session]) -> None:
    with scope as session:
        session.add(Counter(id=1000, value=1))
        session.commit()


async def async_bump(scope: AbstractAsyncContextManager[AsyncSession]) -> None:
    async with scope as session:
        await session.execute(BUMP, {"id": 1})
        await session.commit()


def state(servers: Servers) -> list[tuple[int, int]]:
    """The rows that these tests may change."""
    return servers.primary.fetch("select id, value from counters where id in (1, 1000) order by id")


POOLS = {"monitored": {}, "SQLAlchemy's own": {"engine": lambda _: {}}}


@pytest.fixture(params=POOLS.values(), ids=POOLS)
def pool(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options for a router's engines."""
    return request.param


@pytest.mark.guarantee(
    "a read session refuses writes", pattern="replicas", under="on replicas, on the primary, sync and async"
)
@pytest.mark.parametrize("replicas", [True, False])
@pytest.mark.parametrize("write", [bump, add])
def test_read_session_refuses_writes_in_one_sentence(
    servers: Servers,
    make_router: MakeRouter,
    replicas: bool,
    write: Callable[..., None],
    pool: dict[str, Any],
) -> None:
    primary, some = servers.urls
    router, before = make_router((primary, some if replicas else []), options=pool), state(servers)
    with pytest.raises(ReadOnlyError, match=r"router\.write"):
        write(router.read())
    assert state(servers) == before


def test_driver_options_keep_read_sessions_read_only(servers: Servers, make_router: MakeRouter) -> None:
    options = {"connect_args": {"options": "-c work_mem=7MB"}}
    for engine in (options, lambda url: options):
        router = make_router(servers.urls, options={"engine": engine})
        with pytest.raises(ReadOnlyError), router.read() as session:
            session.execute(BUMP, {"id": 1})
        for scope in (router.read(), router.write(), router.analytics()):
            with scope as session:
                assert session.scalar(text("show work_mem")) == "7MB"


@pytest.mark.guarantee("a read session refuses writes")
@pytest.mark.parametrize("replicas", [True, False])
def test_async_read_session_refuses_writes(servers: Servers, make_router: MakeRouter, replicas: bool) -> None:
    primary, some = servers.urls
    router, before = make_router((primary, some if replicas else [])), state(servers)

    async def scenario() -> None:
        with pytest.raises(ReadOnlyError):
            await async_bump(router.read())
        await router.aclose()

    asyncio.run(scenario())
    assert state(servers) == before


@pytest.mark.control("a read session refuses writes")
def test_the_control_plain_sessions_write(servers: Servers) -> None:
    url = servers.primary.url.replace("postgresql:", "postgresql+psycopg:")
    before = value(servers, 1)
    engine = create_engine(url)
    bump(Session(engine))
    assert state(servers) == [(1, before + 1)]
    add(Session(engine))
    assert state(servers) == [(1, before + 1), (1000, 1)]
    with Session(engine) as session:
        session.delete(session.get(Counter, 1000))
        session.commit()
    engine.dispose()

    async def scenario() -> None:
        engine = create_async_engine(url)
        await async_bump(AsyncSession(engine))
        await engine.dispose()

    asyncio.run(scenario())
    assert state(servers) == [(1, before + 2)]


def test_write_block_commits_at_its_end_or_rolls_back(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)
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


@pytest.mark.guarantee(
    "a commit of unknown outcome is called that, and not repeated",
    pattern="replicas",
    under="the line cut during COMMIT",
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_commit_whose_answer_is_lost_is_unknown_and_not_repeated(
    servers: Servers, make_router: MakeRouter, proxy: Proxy, asynchronous: bool, pool: dict[str, Any]
) -> None:
    router = make_router(through(proxy, servers), health=HealthLimits(sample_s=0), options=pool)
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

    with router.consistency_context() as seen:
        with pytest.raises(CommitUnknownError, match="unknown whether it was committed"):
            asyncio.run(async_scenario()) if asynchronous else scenario()
        proxy.cut_at = None
        assert proxy.cuts == 1
        # It was committed in this case, and its writer reads that on the primary.
        eventually(lambda: value(servers, 10) == before + 1)
        assert seen.token.position == 0
        with router.read() as session:
            row = session.execute(text("select value, inet_server_port() from counters where id = 10")).one()
        assert row == (before + 1, servers.primary.port)
        assert seen.token.position > 0
    assert value(servers, 10) == before + 1


@pytest.mark.control("a commit of unknown outcome is called that, and not repeated")
def test_the_control_connection_lost_before_commit_is_not_unknown(
    servers: Servers, make_router: MakeRouter, proxy: Proxy
) -> None:
    router = make_router(through(proxy, servers), health=HealthLimits(sample_s=0))
    with pytest.raises(DBAPIError) as caught, router.write() as session:
        session.execute(text("select 1"))
        proxy.cut_at = b"update"
        session.execute(BUMP, {"id": 11})
    assert not isinstance(caught.value, CommitUnknownError)


def test_unknown_position_after_a_write_sends_reads_to_the_primary(
    servers: Servers, make_router: MakeRouter, proxy: Proxy
) -> None:
    """The commit was acknowledged, then the connection was lost: the primary serves the next read."""
    router = make_router(through(proxy, servers), health=HealthLimits(sample_s=0))
    with servers.hold_back(servers.replicas[0], 300), router.consistency_context():
        with router.write() as session:
            written = session.execute(BUMP, {"id": 12}).scalar()
            proxy.cut_at = b"pg_current_wal_insert_lsn"
        proxy.cut_at = None
        for _ in range(5):
            with router.read() as session:
                assert session.get(Counter, 12).value == written


def test_reports_stay_off_the_primary(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)
    for _ in range(10):
        with router.analytics() as session:
            assert session.execute(text("select pg_is_in_recovery()")).scalar()
            assert session.execute(text("show statement_timeout")).scalar() == "0"
    with pytest.raises(NoReplicaError), make_router((servers.primary.url, [])).analytics() as session:
        session.execute(text("select 1"))


def stranded(servers: Servers, make_router: MakeRouter, *, reads: int, primary_reads: int) -> int:
    """The number of reads that the primary serves at once when no replica answers."""
    nowhere = "postgresql://app@127.0.0.1:1/app"
    limits = HealthLimits(sample_s=0)
    router = make_router((servers.primary.url, [nowhere]), primary_reads=primary_reads, health=limits)
    all_known = threading.Barrier(reads)

    def read(_: int) -> int:
        with router.read() as session:
            try:
                return session.execute(text("select pg_backend_pid()")).scalar()
            except NoReplicaError as error:
                assert "primary_reads" in str(error)
                return 0
            finally:
                all_known.wait(30)

    backends = in_threads(reads, read)
    assert read_alone(router)  # afterwards there is room again
    return len(set(backends) - {0})


def read_alone(router: DatabaseRouter) -> bool:
    with router.read() as session:
        return session.execute(text("select true")).scalar()


@pytest.mark.guarantee(
    "the primary takes a bounded number of reads", pattern="replicas", under="no replica answers"
)
def test_primary_reads_bounds_the_reads_without_a_replica(servers: Servers, make_router: MakeRouter) -> None:
    """The reads that the primary is spared are refused within a second."""
    assert stranded(servers, make_router, reads=8, primary_reads=2) == 2


@pytest.mark.control("the primary takes a bounded number of reads")
def test_the_control_with_a_large_bound_the_primary_gets_all_reads(
    servers: Servers, make_router: MakeRouter
) -> None:
    assert stranded(servers, make_router, reads=8, primary_reads=8) == 8


def backends(router: DatabaseRouter) -> set[int]:
    """The backends of a write and a read session."""
    pid = text("select pg_backend_pid()")
    with router.write() as writer, router.read() as reader:
        return {writer.execute(pid).scalar(), reader.execute(pid).scalar()}


def after_a_fork(router: DatabaseRouter) -> tuple[set[int], set[int]]:
    """The backends of a process that has used the router, and of a worker that it forks then.

    As a server that forks its workers after the app was loaded: gunicorn --preload, Celery.
    """
    mine = backends(router)
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            found = backends(router)
            eventually(lambda: all(state["serving"] for state in router.servers().values()))
            os.write(theirs, repr(found).encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with os.fdopen(ours) as pipe:
        others = ast.literal_eval(pipe.read())
    assert len(others) == 2
    return mine, others


@pytest.mark.guarantee(
    "a forked worker uses no connection of its parent", pattern="replicas", under="gunicorn --preload, Celery"
)
def test_a_forked_worker_has_connections_of_its_own(servers: Servers, make_router: MakeRouter) -> None:
    primary, replicas = servers.urls
    router = make_router((primary, replicas[:1]), health=HealthLimits(sample_s=0.05))
    mine, others = after_a_fork(router)
    assert not others & mine
    assert backends(router) <= mine  # and the parent's still work


@pytest.mark.control("a forked worker uses no connection of its parent")
def test_the_control_without_a_check_of_the_pid_it_uses_its_parents(
    servers: Servers, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DatabaseRouter, "_start", lambda router: None)
    primary, replicas = servers.urls
    mine, others = after_a_fork(make_router((primary, replicas[:1])))
    assert others == mine


@pytest.mark.parametrize("asynchronous", [False, True])
def test_deadlines_hold_on_every_engine(
    servers: Servers, make_router: MakeRouter, asynchronous: bool
) -> None:
    router = make_router(servers.urls)
    router.configure_engines(enforce_deadlines)

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


def test_without_replicas_the_primary_serves_reads(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router((servers.primary.url, []))
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
def test_invalid_arguments_are_refused(arguments: list, options: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        DatabaseRouter(*arguments, **options)


def test_invalid_url_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        DatabaseRouter("postgresql:/app:secret@x")
    assert "secret" not in str(caught.value)
