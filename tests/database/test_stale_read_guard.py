"""The stale read guard, over a service that reads through the router and one that reads any replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tenfold.database import DatabaseRouter
from tenfold.database.pytest import StaleReadGuard, stale_read_guard  # noqa: F401 - the fixture under test
from tests.database.conftest import Servers

MakeRouter = Callable[..., DatabaseRouter]

BUMP = text("update counters set value = value + 1 where id = 95")
LOOK = text("select value from counters where id = 95")


@pytest.fixture(scope="package")
def replica_admin_urls(servers: Servers) -> Sequence[str]:
    return [replica.admin_url for replica in servers.replicas]


@pytest.fixture
def visitor(
    servers: Servers, make_router: MakeRouter
) -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    router = make_router(servers.urls)

    def write() -> None:
        with router.write() as session:
            session.execute(BUMP)

    def read() -> int:
        with router.read() as session:
            return session.execute(LOOK).scalar()

    with router.consistency_context():
        yield write, read


def test_guard_passes_for_reads_through_the_router(
    stale_read_guard: StaleReadGuard,  # noqa: F811
    visitor: Any,
) -> None:
    write, read = visitor
    before = read()
    assert stale_read_guard.check(write=write, read=read) == before + 1


def test_the_control_guard_fails_for_reads_from_any_replica(
    stale_read_guard: StaleReadGuard,  # noqa: F811
    visitor: Any,
    servers: Servers,
) -> None:
    write, _ = visitor
    engine = create_engine(servers.replicas[0].url.replace("postgresql:", "postgresql+psycopg:"))

    def read() -> int:
        with engine.connect() as connection:
            return connection.execute(LOOK).scalar()

    with pytest.raises(AssertionError, match="stale read"):
        stale_read_guard.check(write=write, read=read)
    engine.dispose()


def test_replicas_are_released_after_an_exception(
    stale_read_guard: StaleReadGuard,  # noqa: F811
    servers: Servers,
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stale_read_guard.check(write=fail, read=fail)
    for replica in servers.replicas:
        assert replica.fetch("show recovery_min_apply_delay") == [("0",)]
