"""WAIT FOR LSN of PostgreSQL 19, with made-up answers, since no 19 is at hand."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import psycopg
import pytest
from sqlalchemy import text

from tenfold.database import DatabaseRouter, FreshnessLimits, HealthLimits
from tenfold.database.replicas.checkout import Checkout
from tests.database.conftest import Servers
from tests.support.waiting import eventually

MakeRouter = Callable[..., DatabaseRouter]
BUMP = text("update counters set value = value + 1 where id = 95 returning value")
LOOK = text("select value, inet_server_port() from counters where id = 95")
VERSION = "tenfold.database.replicas.checkout.server_version"


@contextmanager
def told(answer: Callable[[Checkout, str], Any] | None = None) -> Iterator[list[str]]:
    """Pretend that servers are a 19; record their questions as "wait" and "ask"."""
    asked: list[str] = []
    real = Checkout._fetch_row

    def row(checkout: Checkout, statement: str) -> Any:
        asked.append("wait" if statement.startswith("WAIT FOR") else "ask")
        return answer(checkout, statement) if answer and asked[-1] == "wait" else real(checkout, statement)

    with mock.patch.object(Checkout, "_fetch_row", row), mock.patch(VERSION, lambda _: 190004):
        yield asked


def made_up(status: str, servers: Servers) -> Callable[[Checkout, str], Any]:
    """FAKE: a 19's answer, once the replica (an 18) has replayed that far, or at once."""

    def answer(_: Checkout, statement: str) -> tuple[str]:
        position = re.findall(r"'([0-9A-F/]+)'", statement)[0]
        query = f"select pg_last_wal_replay_lsn() >= '{position}'"
        if status == "success":
            eventually(lambda: servers.replicas[0].fetch(query)[0][0])
        return (status,)

    return answer


def own_write(router: DatabaseRouter, asynchronous: bool = False) -> tuple[int, int, int]:
    """Write, then read; return the value written, the value read and the port of the server."""

    def write() -> int:
        with router.write() as session:
            return session.execute(BUMP).scalar()  # type: ignore[return-value]

    async def scenario() -> Any:
        async with router.read() as session:
            found = (await session.execute(LOOK)).one()
        await router.aclose()
        return found

    with router.read() as session:  # a connection that knows its place is known to be on this timeline
        session.execute(LOOK)
    with router.consistency_context():
        written = write()
        if asynchronous:
            return written, *asyncio.run(scenario())
        with router.read() as session:
            return written, *session.execute(LOOK).one()


@pytest.fixture
def router(servers: Servers, make_router: MakeRouter) -> DatabaseRouter:
    limits = FreshnessLimits(wait_s=5, monotonic=False)
    return make_router(
        (servers.primary.url, [servers.replicas[0].url]), freshness=limits, health=HealthLimits(sample_s=0)
    )


@pytest.mark.parametrize("asynchronous", [False, True])
def test_replica_with_wait_support_gets_one_wait_and_one_question(
    servers: Servers, router: DatabaseRouter, asynchronous: bool
) -> None:
    with servers.hold_back(servers.replicas[0], 300), told(made_up("success", servers)) as asked:
        written, value, port = own_write(router, asynchronous)
    assert (value, port) == (written, servers.replicas[0].port)
    assert asked[-2:] == ["wait", "ask"]
    assert asked.count("wait") == 1
    assert len(asked) <= 4  # and after the write, and where the replica is


@pytest.mark.guarantee(
    "the answer of `WAIT FOR LSN` (PostgreSQL 19) is never trusted",
    pattern="replicas",
    under="made-up answers of a 19, a refusal by a real 18, an interruption",
    control='the answer "success" in the first of these tests',
)
@pytest.mark.parametrize("status", ["timeout", "not in recovery", "success at once, and wrongly"])
def test_the_result_of_a_wait_is_never_trusted(servers: Servers, router: DatabaseRouter, status: str) -> None:
    with servers.hold_back(servers.replicas[0], 300), told(made_up(status, servers)) as asked:
        written, value, port = own_write(router)
    assert (value, port) == (written, servers.replicas[0].port)
    assert asked.count("wait") == 1
    assert asked.count("ask") > 4  # again and again, in the time that was left


@pytest.mark.guarantee("the answer of `WAIT FOR LSN` (PostgreSQL 19) is never trusted")
def test_server_that_refuses_to_wait_is_polled_from_then_on(servers: Servers, router: DatabaseRouter) -> None:
    """A real 18 that is taken for a 19 answers with a syntax error."""
    with servers.hold_back(servers.replicas[0], 100), told() as asked:
        for _ in range(3):
            written, value, port = own_write(router)
            assert (value, port) == (written, servers.replicas[0].port)
    assert asked.count("wait") == 1


@pytest.mark.guarantee("the answer of `WAIT FOR LSN` (PostgreSQL 19) is never trusted")
@pytest.mark.parametrize(
    ("error", "waits"),
    [(psycopg.errors.SerializationFailure, True), (psycopg.errors.ObjectNotInPrerequisiteState, False)],
)
def test_interrupted_wait_falls_back_to_polling(
    servers: Servers, router: DatabaseRouter, error: type[Exception], waits: bool
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with servers.hold_back(servers.replicas[0], 100), told(fail) as asked:
        for _ in range(2):
            written, value, port = own_write(router)
            assert (value, port) == (written, servers.replicas[0].port)
    assert (asked.count("wait") == 2) is waits


def test_server_lost_during_a_wait_is_left_for_the_primary(servers: Servers, router: DatabaseRouter) -> None:
    def fail(*_: Any) -> Any:
        raise psycopg.OperationalError("made up: the server is gone")

    with servers.hold_back(servers.replicas[0], 100), told(fail):
        written, value, port = own_write(router)
    assert (value, port) == (written, servers.primary.port)
    assert {state["in_flight"] for state in router.servers().values()} == {0}
