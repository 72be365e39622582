"""Routers and pools do the same with psycopg, psycopg2 and asyncpg, or refuse in a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.database import DatabaseRouter, HealthLimits, pool_options
from tenfold.database.asyncpg import libpq_parameters, translate
from tenfold.database.pools.statement_timeout import enforce_deadlines
from tenfold.deadlines import deadline
from tenfold.errors import CommitUnknownError, DeadlineExceededError, ReadOnlyError, SettingsError
from tests.database.conftest import Servers
from tests.database.support.drivers import run, sessions, with_driver
from tests.support.tcp_proxy import Proxy
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]
DRIVERS = ["psycopg", "psycopg2", "psycopg asyncio", "asyncpg"]
BUMP = text("update counters set value = value + 1 where id = 33 returning value")
LOOK = text("select value, inet_server_port() from counters where id = 33")

each_driver = pytest.mark.parametrize("driver", DRIVERS)


@pytest.fixture
def router_of(servers: Servers, make_router: MakeRouter) -> Callable[..., DatabaseRouter]:
    def make(driver: str, *, primary: str = "", replicas: int = 2, **options: Any) -> DatabaseRouter:
        first, others = servers.urls
        urls = with_driver(primary or first, driver), [with_driver(url, driver) for url in others[:replicas]]
        return make_router(urls, **options)

    return make


@pytest.mark.guarantee(
    "routers and pools keep their promises with each driver",
    pattern="replicas",
    under="psycopg, psycopg2 and asyncpg, sync and async",
)
@each_driver
def test_own_writes_are_read_from_a_replica(
    servers: Servers, router_of: Callable[..., DatabaseRouter], driver: str
) -> None:
    router = router_of(driver)

    def work() -> None:
        ports = set()
        for _ in range(30):
            with router.consistency_context():
                with sessions(driver, router, "write") as session:
                    written = session.execute(BUMP).scalar()
                with sessions(driver, router, "read") as session:
                    value, port = session.execute(LOOK).one()
            assert value == written
            ports.add(port)
        assert ports & {replica.port for replica in servers.replicas}
        with sessions(driver, router, "read", isolation="REPEATABLE READ") as session:
            assert session.scalar(text("show transaction_isolation")) == "repeatable read"
        with sessions(driver, router, "analytics") as session:
            assert session.scalar(text("show statement_timeout")) == "0"
            assert session.scalar(text("select pg_is_in_recovery()"))

    with servers.hold_back(servers.replicas[0], 300):
        run(driver, router, work)


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
@pytest.mark.parametrize("replicas", [0, 2])
def test_read_session_refuses_writes(
    router_of: Callable[..., DatabaseRouter], driver: str, replicas: int
) -> None:
    router = router_of(driver, replicas=replicas)

    def work() -> None:
        for isolation in (None, "REPEATABLE READ"):
            with (
                pytest.raises(ReadOnlyError),
                sessions(driver, router, "read", isolation=isolation) as session,
            ):
                session.execute(BUMP)

    run(driver, router, work)


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
@pytest.mark.parametrize("use", ["read", "write", "analytics"])
def test_deadline_ends_a_running_statement(
    router_of: Callable[..., DatabaseRouter], driver: str, use: str
) -> None:
    router = router_of(driver)

    def work() -> None:
        for _ in range(2):
            with (
                deadline(0.3),
                pytest.raises(DeadlineExceededError),
                sessions(driver, router, use) as session,
            ):
                session.execute(text("select pg_sleep(10)"))
        with sessions(driver, router, use) as session:
            assert session.scalar(text("show statement_timeout")) == "0"

    run(driver, router, work)


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
@pytest.mark.parametrize("autocommit", [True, False])
def test_enforced_deadline_ends_a_statement_of_another_pool(
    servers: Servers, router_of: Callable[..., DatabaseRouter], driver: str, autocommit: bool
) -> None:
    make = create_engine if driver in ("psycopg", "psycopg2") else create_async_engine
    level = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
    made = make(with_driver(servers.primary.url, driver), **level)
    enforce_deadlines(made)
    engine: Any = getattr(made, "sync_engine", made)

    def work() -> None:
        with deadline(0.3), pytest.raises(DeadlineExceededError), engine.connect() as connection:
            connection.execute(text("select pg_sleep(10)"))
        engine.dispose()

    run(driver, router_of("psycopg"), work)


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
@pytest.mark.parametrize("number", range(2))
def test_statement_whose_server_is_lost_is_repeated_elsewhere(
    servers: Servers, router_of: Callable[..., DatabaseRouter], driver: str, number: int
) -> None:
    router = router_of(driver)

    def work() -> None:
        with sessions(driver, router, "read") as session:
            pid, port = session.execute(text("select pg_backend_pid(), inet_server_port()")).one()
            replica = next(each for each in servers.replicas if each.port == port)
            if number:  # while the connection is idle, or as soon as a statement runs
                servers.execute(replica, f"select pg_terminate_backend({pid})")
                assert session.scalar(text("select 1")) == 1
            else:
                servers.execute(replica, f"select pg_terminate_backend({pid}, 5000)")
                assert session.scalar(text("select 2")) == 2
        with sessions(driver, router, "read") as session:
            assert session.scalar(text("select 3")) == 3
        assert {each["in_flight"] for each in router.servers().values()} == {0}

    run(driver, router, work)


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
def test_read_on_a_hung_replica_is_cut_and_repeated(
    servers: Servers, router_of: Callable[..., DatabaseRouter], driver: str
) -> None:
    router = router_of(driver, health=HealthLimits(hang_s=0.4, sample_s=0.1))

    def work() -> None:
        with sessions(driver, router, "read") as session:
            port = session.execute(LOOK).one()[1]
            with servers.pause(next(each for each in servers.replicas if each.port == port)):
                assert session.execute(LOOK).one()[1] != port

    run(driver, router, work)


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
def test_connection_lost_in_commit_is_of_unknown_outcome(
    servers: Servers, router_of: Callable[..., DatabaseRouter], driver: str
) -> None:
    proxy = Proxy(servers.primary.port)
    through = make_url(servers.primary.url).set(port=proxy.port).render_as_string(hide_password=False)
    router = router_of(driver, primary=through)

    def work() -> None:
        with pytest.raises(CommitUnknownError), sessions(driver, router, "write") as session:
            session.execute(BUMP)
            proxy.cut_at = b"COMMIT"
        proxy.cut_at = None
        with sessions(driver, router, "write") as session:
            assert session.execute(BUMP).scalar() > 0

    run(driver, router, work)
    proxy.close()


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
def test_unreachable_replica_is_left_out(
    servers: Servers, router_of: Callable[..., DatabaseRouter], make_router: MakeRouter, driver: str
) -> None:
    nowhere = make_url(servers.primary.url).set(port=1).render_as_string(hide_password=False)
    first, others = servers.urls
    router = make_router(
        (with_driver(first, driver), [with_driver(nowhere, driver), with_driver(others[0], driver)])
    )

    def work() -> None:
        for _ in range(5):
            with sessions(driver, router, "read") as session:
                assert session.execute(LOOK).one()[1] == servers.replicas[0].port

    run(driver, router, work)


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
def test_state_of_a_session_does_not_reach_the_next(
    servers: Servers, router_of: Callable[..., DatabaseRouter], driver: str
) -> None:
    router = router_of(driver, replicas=1, options={"engine": {"pool_size": 1, "max_overflow": 0}})

    def work() -> None:
        for use in ("read", "write", "analytics"):
            for statement in (
                "set search_path to pg_catalog",
                "select pg_advisory_lock(1)",
                "prepare p as select 1",
            ):
                with sessions(driver, router, use) as session:
                    session.execute(text(statement))
            with sessions(driver, router, use) as session:
                assert session.scalar(text("show search_path")) != "pg_catalog"
                locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
                assert session.scalar(text(locks)) == 0
                session.execute(text("select set_config('app.tenant', 'x', true)"))
                assert session.scalar(text("select current_setting('app.tenant')")) == "x"

    run(driver, router, work)


# ------------------------------------------------------------------ parameters


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
def test_parameters_of_a_url_win_over_defaults(
    servers: Servers, make_router: MakeRouter, driver: str
) -> None:
    first, others = servers.urls
    query = {"application_name": "shop", "connect_timeout": "7", "options": "-c work_mem=7MB -c a.b=x\\ y"}
    router = make_router(
        (with_driver(first, driver, **query), [with_driver(others[0], driver, **query)]),
    )

    def work() -> None:
        for use in ("read", "write", "analytics"):
            with sessions(driver, router, use) as session:
                assert session.scalar(text("show application_name")) == "shop"
                assert session.scalar(text("show work_mem")) == "7MB"
                assert session.scalar(text("show a.b")) == "x y"
        with pytest.raises(ReadOnlyError), sessions(driver, router, "read") as session:
            session.execute(BUMP)
        eventually(lambda: router.servers()[f"127.0.0.1:{servers.replicas[0].port}/app"]["serving"])

    run(driver, router, work)


@pytest.mark.guarantee("routers and pools keep their promises with each driver")
@each_driver
@pytest.mark.parametrize(
    ("query", "options", "shown"),
    [
        ({}, {}, "tenfold"),
        ({"application_name": "shop"}, {}, "shop"),
        ({"application_name": "shop"}, {"application_name": "mine"}, "mine"),
        ({}, {"connect_args": {"application_name": "driver's"}}, "driver's"),
    ],
)
def test_application_name_is_that_of_the_nearest(
    servers: Servers, driver: str, query: dict[str, str], options: dict[str, Any], shown: str
) -> None:
    url = with_driver(servers.primary.url, driver, **query)
    made = pool_options(url, metrics=False, **options)

    async def scenario() -> Any:
        engine = create_async_engine(url, **made)
        async with engine.connect() as connection:
            found = await connection.scalar(text("show application_name"))
        await engine.dispose()
        return found

    if driver in ("psycopg", "psycopg2"):
        engine = create_engine(url, **made)
        with engine.connect() as connection:
            assert connection.scalar(text("show application_name")) == shown
        engine.dispose()
    else:
        assert asyncio.run(scenario()) == shown


def test_driver_of_the_other_kind_is_refused(make_router: MakeRouter) -> None:
    router = make_router(("postgresql+asyncpg://127.0.0.1:1/shop", []))
    with pytest.raises(SettingsError, match="use `async with`"), router.read() as session:
        session.execute(LOOK)
    other = make_router(("postgresql+psycopg2://127.0.0.1:1/shop", []))

    async def scenario() -> None:
        async with other.write() as session:
            await session.execute(LOOK)

    with pytest.raises(SettingsError, match="psycopg2 has no asyncio"):
        asyncio.run(scenario())


def test_driver_that_was_not_tried_is_refused(make_router: MakeRouter) -> None:
    with pytest.raises(SettingsError, match="does not work with pg8000"):
        make_router(("postgresql+pg8000://127.0.0.1/shop", []))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"host": "h", "user": "u"}, {"host": "h", "user": "u"}),
        ({"connect_timeout": "3"}, {"timeout": 3.0}),
        ({"connect_timeout": 0}, {"timeout": None}),
        ({"connect_timeout": 3, "timeout": "1.5"}, {"timeout": 1.5}),
        ({"statement_cache_size": "0"}, {"statement_cache_size": 0}),
        ({"fallback_application_name": "a"}, {"server_settings": {"application_name": "a"}}),
        (
            {"fallback_application_name": "a", "application_name": "b"},
            {"server_settings": {"application_name": "b"}},
        ),
        (
            {"application_name": "b", "server_settings": {"application_name": "c", "jit": "off"}},
            {"server_settings": {"application_name": "c", "jit": "off"}},
        ),
        (
            {"options": "-c work_mem=7MB --search-path=a,b  -ca.b=x\\ y\\\\"},
            {"server_settings": {"work_mem": "7MB", "search_path": "a,b", "a.b": "x y\\"}},
        ),
        ({"sslmode": "require"}, {"dsn": "postgresql://?sslmode=require"}),
    ],
)
def test_libpq_parameters_become_those_of_asyncpg(
    arguments: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert translate(arguments) == expected
    assert translate(expected) == expected


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"keepalives": "1"}, "'keepalives'"), ({"options": "-E"}, "options=-c name=value")],
)
def test_parameter_without_counterpart_is_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        translate(arguments)


def test_sampler_gets_what_libpq_knows() -> None:
    query = {"ssl": "require", "timeout": "3", "prepared_statement_cache_size": "0", "application_name": "a"}
    assert libpq_parameters(query) == {"application_name": "a", "sslmode": "require", "connect_timeout": "3"}
    assert libpq_parameters({"sslmode": "disable", "options": "-c a=b"}) == {
        "sslmode": "disable",
        "options": "-c a=b",
    }


@pytest.mark.control("routers and pools keep their promises with each driver")
def test_the_control_without_translation_asyncpg_refuses_the_url(servers: Servers) -> None:
    url = with_driver(servers.primary.url, "asyncpg", connect_timeout="3")

    async def scenario() -> None:
        async with create_async_engine(url).connect():
            pass

    with pytest.raises((TypeError, DBAPIError), match="connect_timeout"):
        asyncio.run(scenario())
