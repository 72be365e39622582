"""One session in several tasks is refused, one router in several event loops is not; no count leaks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError

from tenfold.database import DatabaseRouter
from tenfold.database.drivers import abandon_connections
from tenfold.database.replicas.sessions import _RoutedSession
from tests.database.conftest import Servers, in_threads
from tests.database.support.drivers import with_driver
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]
SLOW = text("select 1 from pg_sleep(0.05)")


def in_flight(router: DatabaseRouter) -> int:
    servers = (router._primary, router._primary_reads, *router._replicas, *router._analytics)
    return sum(server.load.in_flight - len(server._abandoned) for server in set(servers))


async def gather(router: DatabaseRouter, use: str, count: int = 6) -> list[Any]:
    async with getattr(router, use)() as session:
        return await asyncio.gather(*(session.scalar(SLOW) for _ in range(count)), return_exceptions=True)


@pytest.mark.guarantee(
    "misuse of a session leaks no count of reads in flight",
    pattern="replicas",
    under="gather, close during a checkout, no close at all",
)
@pytest.mark.parametrize("use", ["read", "write", "analytics"])
def test_concurrent_statements_of_a_new_session_are_refused(
    servers: Servers, make_router: MakeRouter, use: str
) -> None:
    router = make_router(servers.urls)

    async def scenario() -> None:
        first, *others = await gather(router, use)
        assert first == 1
        for error in others:
            assert isinstance(error, InvalidRequestError)
            assert "concurrent operations are not permitted" in str(error)
        assert in_flight(router) == 0
        async with getattr(router, use)() as session:
            assert await session.scalar(SLOW) == 1
        await router.aclose()

    asyncio.run(scenario())
    assert in_flight(router) == 0


@pytest.mark.guarantee("misuse of a session leaks no count of reads in flight")
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("use", ["read", "write"])
def test_concurrent_statements_of_a_connected_session_leave_no_count(
    servers: Servers, make_router: MakeRouter, driver: str, use: str
) -> None:
    primary, replicas = servers.urls
    router = make_router((with_driver(primary, driver), [with_driver(url, driver) for url in replicas]))

    async def scenario() -> None:
        for _ in range(3):
            with contextlib.suppress(SQLAlchemyError):
                async with getattr(router, use)() as session:
                    await session.scalar(text("select 1"))
                    await asyncio.gather(*(session.scalar(SLOW) for _ in range(4)))
        async with getattr(router, use)() as session:
            assert await session.scalar(SLOW) == 1
        assert in_flight(router) == 0
        await router.aclose()

    asyncio.run(scenario())


@pytest.mark.control("misuse of a session leaks no count of reads in flight")
def test_the_control_without_the_refusal_counts_leak(
    servers: Servers, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = make_router(servers.urls)
    kept: list[Any] = []

    def acquire(session: Any) -> Any:
        kept.append(session._acquire())
        return kept[-1]

    monkeypatch.setattr(_RoutedSession, "_acquire_alone", acquire)

    async def scenario() -> None:
        await gather(router, "read")
        assert in_flight(router) > 0
        for checkout in kept:
            checkout.release()
        await router.aclose()

    asyncio.run(scenario())


@pytest.mark.guarantee("misuse of a session leaks no count of reads in flight")
@pytest.mark.parametrize("use", ["read", "write"])
def test_session_closed_during_its_checkout_gives_the_connection_back(
    servers: Servers, make_router: MakeRouter, use: str
) -> None:
    router = make_router(servers.urls)

    async def scenario() -> None:
        session = getattr(router, f"get_async_{use}_session")()
        reading = asyncio.create_task(session.scalar(SLOW))
        await asyncio.sleep(0)
        await session.close()
        with pytest.raises(InvalidRequestError, match="closed while"):
            await reading
        assert in_flight(router) == 0
        await router.aclose()

    asyncio.run(scenario())


@pytest.mark.guarantee("misuse of a session leaks no count of reads in flight")
def test_session_that_is_never_closed_leaves_no_count(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)
    for make in (router.get_read_session, router.get_write_session):
        session: Any = make()
        session.execute(text("select 1"))
        assert in_flight(router) == 1
        del session
        gc.collect()
        assert in_flight(router) == 0
        with make() as another:
            another.execute(text("select 1"))
    assert [server["in_flight"] for server in router.servers().values()] == [0, 0]


@pytest.mark.guarantee(
    "a router serves several event loops", pattern="replicas", under="loops at once, and one after another"
)
def test_two_event_loops_at_once_share_a_router(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls, options={"engine": {"pool_size": 1, "max_overflow": 0}})
    together = threading.Barrier(3)

    async def reads() -> int:
        async def one(use: str) -> int:
            async with getattr(router, use)() as session:
                return int(await session.scalar(SLOW))

        together.wait(10)
        return sum(await asyncio.gather(*(one(use) for use in ("read", "write") for _ in range(8))))

    assert in_threads(3, lambda _: asyncio.run(reads())) == [16, 16, 16]
    assert in_flight(router) == 0


@pytest.mark.control("a router serves several event loops")
def test_the_control_one_engine_for_all_loops_fails(
    servers: Servers, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = make_router(servers.urls, options={"engine": {"pool_size": 1, "max_overflow": 0}})
    engine = router._primary._set_up_engine(True)
    monkeypatch.setattr(type(router._primary), "engine", lambda *_: engine)

    async def write() -> list[Any]:
        async def one() -> Any:
            async with router.write() as session:
                return await session.scalar(SLOW)

        return await asyncio.gather(*(one() for _ in range(2)), return_exceptions=True)

    assert asyncio.run(write()) == [1, 1]
    assert any(isinstance(result, Exception) for result in asyncio.run(write()))
    abandon_connections(engine)


@pytest.mark.guarantee("a router serves several event loops")
def test_connections_of_closed_loops_are_closed(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)
    query = "select count(*) from pg_stat_activity where application_name = 'tenfold'"
    all_servers = (servers.primary, *servers.replicas)
    before = {server.name: server.fetch(query)[0][0] for server in all_servers}  # of other tests

    async def read() -> Any:
        async with router.read() as session, router.write() as other:
            await other.execute(text("select 1"))
            return await session.scalar(text("select 1"))

    assert [asyncio.run(read()) for _ in range(5)] == [1] * 5
    for most in (2, 0):
        for server in all_servers:
            eventually(
                lambda server=server, most=most: server.fetch(query)[0][0] <= before[server.name] + most
            )
        router.close()
