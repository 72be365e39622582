"""Sessions of a class of the caller's own, such as SQLModel's, routed like all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlmodel import Field, Session, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tenfold.database import DatabaseRouter
from tenfold.errors import ReadOnlyError, SettingsError
from tests.database.conftest import Servers


class Counter(SQLModel, table=True):
    __tablename__ = "counters"
    id: int = Field(primary_key=True)
    value: int


def of_sqlmodel(make_router: Callable[..., DatabaseRouter], servers: Servers) -> DatabaseRouter:
    return make_router(servers.urls, metrics=False, class_=Session, async_class=AsyncSession)


def test_sqlmodels_exec_reads_from_replicas_and_writes_to_the_primary(
    servers: Servers, make_router: Callable[..., DatabaseRouter]
) -> None:
    router = of_sqlmodel(make_router, servers)
    with router.consistency_context():
        with router.write() as session:
            assert isinstance(session, Session)
            counter = session.exec(select(Counter).where(Counter.id == 7)).one()
            counter.value += 1
            written = counter.value
        with router.read() as session:
            assert session.exec(select(Counter.value).where(Counter.id == 7)).one() == written
    assert router.read_counts().keys() & {"known_fresh", "asked_replica", "waited_for_replica"}


def test_read_session_of_sqlmodel_does_not_write(
    servers: Servers, make_router: Callable[..., DatabaseRouter]
) -> None:
    router = of_sqlmodel(make_router, servers)
    with router.read() as session, pytest.raises(ReadOnlyError):
        session.add(Counter(id=10_000, value=1))
        session.flush()


def test_exec_is_repeated_when_its_server_is_lost(
    disposable_servers: Servers, make_router: Callable[..., DatabaseRouter]
) -> None:
    router = of_sqlmodel(make_router, disposable_servers)
    statement = select(Counter.value).where(Counter.id == 7)
    for _ in range(10):
        with router.read() as session:
            session.exec(statement).one()
    for replica in disposable_servers.replicas:
        disposable_servers.kill(replica)
    for _ in range(10):
        with router.read() as session:
            assert session.exec(statement).one() >= 0


def test_async_sessions_of_sqlmodel(servers: Servers, make_router: Callable[..., DatabaseRouter]) -> None:
    async def main() -> int:
        router = of_sqlmodel(make_router, servers)
        with router.consistency_context():
            async with router.write() as session:
                assert isinstance(session, AsyncSession)
                counter = (await session.exec(select(Counter).where(Counter.id == 8))).one()
                counter.value += 1
                written = counter.value
            async with router.read() as session:
                found = (await session.exec(select(Counter.value).where(Counter.id == 8))).one()
        await router.aclose()
        return found - written

    assert asyncio.run(main()) == 0


def test_other_classes_are_refused(servers: Servers) -> None:
    with pytest.raises(SettingsError, match=r"class_ is <class 'int'>: pass a subclass of"):
        DatabaseRouter(*servers.urls, class_=int, metrics=False)  # type: ignore[arg-type]
