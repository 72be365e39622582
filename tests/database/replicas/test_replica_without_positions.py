"""Routers without log positions, with a time in their place: SQLite, and roles that may not ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from tenfold.database import DatabaseRouter, FreshnessLimits, HealthLimits
from tenfold.database.drivers import is_refusal
from tenfold.database.replicas import checkout
from tenfold.errors import ReadOnlyError
from tests.database.conftest import Servers

MakeRouter = Callable[..., DatabaseRouter]

BUMP = text("update counters set value = value + 1 where id = :id returning value")


def sqlite(tmp_path: Path) -> tuple[str, list[str]]:
    names = [f"sqlite:///{tmp_path / name}" for name in ("primary.db", "replica.db")]
    for name in names:
        made = DatabaseRouter(name, [])
        with made.write() as session:
            session.execute(text("create table counters (id integer primary key, value integer)"))
            session.execute(text("insert into counters values (1, 0)"))
        made.close()
    return names[0], names[1:]


def test_write_without_positions_pins_reads_to_the_primary_and_warns(
    tmp_path: Path, make_router: MakeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    router = make_router(sqlite(tmp_path), freshness=FreshnessLimits(pin_s=60))
    brief = make_router(sqlite_again(tmp_path), freshness=FreshnessLimits(pin_s=0))
    for made, expected in (
        (router, 1),
        (brief, 0),
    ):  # the second one is the control: the replica never follows
        with made.consistency_context():
            with made.write() as session:
                session.execute(text("update counters set value = 1"))
            token = made.token()
        with made.consistency_context(token), made.read() as session:
            assert session.execute(text("select value from counters")).scalar() == expected
        with made.read() as session:
            assert session.execute(text("select value from counters")).scalar() == 0
    assert caplog.text.count("no log positions") == 2


def test_forbidden_position_functions_fall_back_to_a_time(
    servers: Servers, make_router: MakeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    function = "function pg_control_system() from public"
    servers.execute(servers.primary, f"revoke execute on {function}")
    servers.wait_for_replicas()
    try:
        router = make_router(
            servers.urls, freshness=FreshnessLimits(pin_s=60), health=HealthLimits(sample_s=0.05)
        )
        in_recovery = text("select pg_is_in_recovery()")
        with router.consistency_context():
            with router.write() as session:
                session.execute(BUMP, {"id": 13})
            with router.read() as session:
                assert not session.execute(in_recovery).scalar()
        for _ in range(20):  # the sampler learns of it, too, and keeps all replicas
            with router.read() as session:
                assert session.execute(in_recovery).scalar()
            time.sleep(0.01)
        assert "no log positions" in caplog.text
    finally:
        servers.execute(servers.primary, f"grant execute on {function.replace('from', 'to')}")
        servers.wait_for_replicas()


def sqlite_again(tmp_path: Path) -> tuple[str, list[str]]:
    return f"sqlite:///{tmp_path / 'primary.db'}", [f"sqlite:///{tmp_path / 'replica.db'}"]


def test_sqlite_read_session_refuses_writes(tmp_path: Path, make_router: MakeRouter) -> None:
    router = make_router(sqlite(tmp_path))
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


REFUSALS = {
    "P0001": "raise exception 'not here'",
    "XX000": "raise exception 'not here' using errcode = 'XX000'",
    "42704": "raise exception 'not here' using errcode = '42704'",
    "42501": "raise exception 'not here' using errcode = '42501'",
    "55000": "raise exception 'not here' using errcode = '55000'",
    "HV000": "raise exception 'not here' using errcode = 'HV000'",
    "no answer": "return null",
}
FUNCTIONS = ("pg_current_wal_insert_lsn", "pg_last_wal_replay_lsn", "pg_is_in_recovery")


@pytest.fixture
def refusing(servers: Servers, request: pytest.FixtureRequest) -> Iterator[tuple[str, list[str]]]:
    """URLs of sessions that find other functions in the place of PostgreSQL's, which refuse."""
    result = {"pg_is_in_recovery": "boolean"}
    servers.execute(
        servers.primary,
        "create schema shadow grant usage on schema shadow to public",
        *(
            f"create function shadow.{name}() returns {result.get(name, 'pg_lsn')} language plpgsql as"
            f" $$ begin {REFUSALS[request.param]}; end $$"
            for name in FUNCTIONS
        ),
    )
    servers.wait_for_replicas()
    primary, replicas = servers.urls
    path = "?options=-c%20search_path%3Dshadow,pg_catalog,public"
    yield primary + path, [url + path for url in replicas]
    servers.execute(servers.primary, "drop schema shadow cascade")
    servers.wait_for_replicas()


def is_in_recovery(router: DatabaseRouter) -> bool:
    with router.read() as session:
        return bool(session.scalar(text("select pg_catalog.pg_is_in_recovery()")))


def lost(router: DatabaseRouter) -> list[int]:
    """The numbers of backends that ten commits ran on."""
    pids = []
    for _ in range(10):
        with router.write() as session:
            session.execute(BUMP, {"id": 14})
            pids.append(session.scalar(text("select pg_backend_pid()")))
    return pids


@pytest.mark.guarantee(
    "a server that tells no log position costs a pause after each write, nothing else",
    pattern="replicas",
    under="refusals of any kind, and no answer",
)
@pytest.mark.parametrize("refusing", REFUSALS, indirect=True)
@pytest.mark.parametrize("sample_s", [0, 0.05])
def test_any_refusal_of_positions_falls_back_to_a_time(
    refusing: tuple[str, list[str]],
    make_router: MakeRouter,
    caplog: pytest.LogCaptureFixture,
    sample_s: float,
) -> None:
    router = make_router(
        refusing,
        freshness=FreshnessLimits(pin_s=60),
        health=HealthLimits(sample_s=sample_s),
        options={"engine": {"pool_size": 1, "max_overflow": 0}},
    )
    with router.consistency_context():
        assert len(set(lost(router))) == 1  # no commit costs its connection
        assert not is_in_recovery(router)
    for _ in range(10):
        assert is_in_recovery(router)
    assert caplog.text.count("does not tell its log position") == 1
    assert caplog.text.count("no log positions") == 1
    assert all(server["serving"] for server in router.servers().values())


@pytest.mark.control("a server that tells no log position costs a pause after each write, nothing else")
@pytest.mark.parametrize("refusing", ["P0001"], indirect=True)
def test_the_control_refusal_that_is_not_recognised_costs_connections(
    refusing: tuple[str, list[str]], make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "is_refusal", lambda _: False)
    one = {"engine": {"pool_size": 1, "max_overflow": 0}}
    router = make_router(refusing, health=HealthLimits(sample_s=0), options=one)
    with router.consistency_context():
        assert len(set(lost(router))) == 10


@pytest.mark.parametrize(
    "state", ["08006", "25006", "25P02", "40001", "53300", "57014", "57P01", "58030", ""]
)
def test_error_of_the_moment_is_no_refusal(state: str) -> None:
    error = Exception()
    error.__dict__["pgcode"] = state
    assert not is_refusal(error)


def test_position_that_another_role_may_not_ask_for_is_not_given_up(
    servers: Servers, make_router: MakeRouter
) -> None:
    """SET ROLE in a write session is about that session."""
    servers.execute(
        servers.primary,
        "create role guest",
        f"grant guest to {make_url(servers.primary.url).username}",
        "revoke execute on function pg_control_system() from public",
        f"grant execute on function pg_control_system() to {make_url(servers.primary.url).username}",
    )
    try:
        router = make_router((servers.primary.url, []))
        with router.consistency_context():
            with router.write() as session:
                session.execute(text("set role guest"))
            with router.write() as session:
                session.execute(BUMP, {"id": 15})
            assert router._cluster.has_positions
            token = router._tracker.token()
            assert token is not None
            assert token.position > 0
    finally:
        servers.execute(
            servers.primary,
            "grant execute on function pg_control_system() to public",
            "drop role guest",
        )
        servers.wait_for_replicas()
