"""Routers without log positions, with a time in their place: SQLite, and roles that may not ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from tenfold.database import DatabaseRouter, FreshnessLimits, HealthLimits
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
