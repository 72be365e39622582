"""A router whose servers are behind a PgBouncer each, in transaction mode, as rendered and documented."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from tenfold.database import DatabaseRouter, HealthLimits, pool_options
from tenfold.database.pools.pgbouncer import driver_options
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError, NoReplicaError, ReadOnlyError, SettingsError
from tests.database.conftest import Servers, in_threads
from tests.database.support import pgbouncer_server
from tests.database.support.drivers import run, sessions, with_driver
from tests.database.support.pgbouncer_server import Program, Running, run_pgbouncer
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]
BUMP = text("update counters set value = value + 1 where id = :id returning value")
LOOK = text("select value, inet_server_port() from counters where id = :id")
program = pgbouncer_server.program
each_driver = pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "psycopg asyncio", "asyncpg"])


@pytest.fixture(scope="module")
def poolers(servers: Servers, program: Program) -> Iterator[list[Running]]:
    """A PgBouncer before the primary, and one before the first replica."""
    account = psycopg.conninfo.conninfo_to_dict(servers.primary.url)
    with ExitStack() as exits:
        yield [
            exits.enter_context(
                run_pgbouncer(
                    program,
                    server.port,
                    databases={"app": "app"},
                    users={str(account["user"]): str(account["password"])},
                    max_db_connections=4,
                )
            )
            for server in (servers.primary, servers.replicas[0])
        ]


@pytest.fixture
def router_of(poolers: list[Running], make_router: MakeRouter) -> Callable[..., DatabaseRouter]:
    def make(driver: str, *, replicas: int = 1, **options: Any) -> DatabaseRouter:
        primary, replica = (with_driver(pooler.url, driver) for pooler in poolers)
        closes = psycopg.capabilities.has_send_close_prepared()
        matching = driver_options(
            driver.split(maxsplit=1)[0], version=poolers[0].version, closes_prepared=closes
        )
        engine = {"pool_size": 5, **matching}
        return make_router((primary, [replica][:replicas]), **{"options": {"engine": engine}, **options})

    return make


@pytest.mark.guarantee(
    "a router works behind PgBouncer in transaction mode",
    pattern="replicas",
    under="PgBouncer 1.18 and 1.24, each driver",
)
@each_driver
def test_own_writes_are_read_from_the_replica(
    servers: Servers, router_of: Callable[..., DatabaseRouter], driver: str
) -> None:
    router = router_of(driver, health=HealthLimits(sample_s=0.05))

    def work() -> None:
        ports = []
        for _ in range(20):
            with router.consistency_context():
                with sessions(driver, router, "write") as session:
                    written = session.execute(BUMP, {"id": 34}).scalar()
                with sessions(driver, router, "read") as session:
                    value, port = session.execute(LOOK, {"id": 34}).one()
            assert value == written
            ports.append(port)
        assert servers.replicas[0].port in ports
        with sessions(driver, router, "read", isolation="REPEATABLE READ") as session:
            assert session.scalar(text("show transaction_isolation")) == "repeatable read"
        for _ in range(10):
            with sessions(driver, router, "analytics") as session:
                assert session.execute(LOOK, {"id": 34}).one()[1] == servers.replicas[0].port
                assert session.scalar(text("show statement_timeout")) == "0"
        eventually(lambda: all(server["serving"] for server in router.servers().values()))

    run(driver, router, work)


@pytest.mark.guarantee("a router works behind PgBouncer in transaction mode")
@each_driver
@pytest.mark.parametrize("replicas", [0, 1])
def test_read_session_refuses_writes(
    router_of: Callable[..., DatabaseRouter], driver: str, replicas: int
) -> None:
    router = router_of(driver, replicas=replicas)

    def work() -> None:
        for isolation in (None, "REPEATABLE READ"):
            scope = sessions(driver, router, "read", isolation=isolation)
            with pytest.raises(ReadOnlyError), scope as session:
                session.execute(BUMP, {"id": 1})
        with sessions(driver, router, "write") as session:
            session.execute(BUMP, {"id": 1})
        if not replicas:
            scope = sessions(driver, router, "analytics")
            with pytest.raises((NoReplicaError, ReadOnlyError)), scope as session:
                session.execute(BUMP, {"id": 1})

    run(driver, router, work)


@pytest.mark.guarantee("a router works behind PgBouncer in transaction mode")
@each_driver
@pytest.mark.parametrize("use", ["read", "write", "analytics"])
def test_deadline_and_state_end_with_the_transaction(
    router_of: Callable[..., DatabaseRouter], driver: str, use: str
) -> None:
    router = router_of(driver)
    state = text(
        "select current_setting('statement_timeout'), nullif(current_setting('app.tenant', true), '')"
    )

    def work() -> None:
        scope = sessions(driver, router, use)
        with deadline(0.3), pytest.raises(DeadlineExceededError), scope as session:
            session.execute(text("select pg_sleep(10)"))
        with deadline(60), sessions(driver, router, use) as session:
            session.execute(text("select set_config('app.tenant', 'alpha', true)"))
            assert session.execute(state).one()[1] == "alpha"
        for _ in range(8):
            with sessions(driver, router, use) as session:
                assert session.execute(state).one() == ("0", None)

    run(driver, router, work)


@pytest.mark.guarantee("a router works behind PgBouncer in transaction mode")
def test_many_threads_share_few_connections(router_of: Callable[..., DatabaseRouter]) -> None:
    router = router_of("psycopg")

    def visit(number: int) -> None:
        for _ in range(15):
            with router.consistency_context():
                with router.write() as session:
                    written = session.execute(BUMP, {"id": number}).scalar()
                with router.read() as session:
                    assert session.execute(LOOK, {"id": number}).one()[0] == written

    in_threads(10, visit)


@pytest.mark.guarantee("a router works behind PgBouncer in transaction mode")
@pytest.mark.parametrize("driver", ["psycopg asyncio", "asyncpg"])
def test_many_tasks_share_few_connections(router_of: Callable[..., DatabaseRouter], driver: str) -> None:
    router = router_of(driver)

    async def visit(number: int) -> None:
        for _ in range(15):
            with router.consistency_context():
                async with router.write() as session:
                    written = (await session.execute(BUMP, {"id": number})).scalar()
                async with router.read() as session:
                    assert (await session.execute(LOOK, {"id": number})).one()[0] == written

    async def scenario() -> None:
        await asyncio.gather(*(visit(number) for number in range(10)))
        await router.aclose()

    asyncio.run(scenario())


@pytest.mark.guarantee("a router works behind PgBouncer in transaction mode")
def test_options_may_come_from_a_function_of_the_url(poolers: list[Running], make_router: MakeRouter) -> None:
    primary, replica = (pooler.url for pooler in poolers)
    matching = driver_options("psycopg", version=poolers[0].version)
    engine = {"engine": lambda url: pool_options(url, metrics=False, **matching)}
    router = make_router((primary, [replica]), options=engine)
    for use in ("read", "analytics"):
        with pytest.raises(ReadOnlyError), getattr(router, use)() as session:
            session.execute(LOOK, {"id": 1})
            session.execute(BUMP, {"id": 1})


@pytest.mark.control("a router works behind PgBouncer in transaction mode")
@pytest.mark.parametrize("replicas", [0, 1])
@pytest.mark.parametrize("use", ["read", "analytics"])
def test_the_control_router_that_is_not_told_of_pgbouncer_is_refused(
    poolers: list[Running], make_router: MakeRouter, replicas: int, use: str
) -> None:
    primary, replica = (pooler.url for pooler in poolers)
    router = make_router((primary, [replica][:replicas]))
    with pytest.raises((SettingsError, NoReplicaError)) as caught, getattr(router, use)() as session:
        session.execute(LOOK, {"id": 1})
    if replicas or use == "read":
        assert "driver_options" in str(caught.value)
