"""The connection budget, with the limits of a real server."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.database.pools.budget import Fleet, ServerLimits, query_limits_at, require_budget
from tenfold.errors import SettingsError
from tests.measure import conftest

postgres_url = conftest.postgres_url


def test_query_limits_of_a_server(postgres_url: str) -> None:
    of_asyncpg = postgres_url.replace("postgresql:", "postgresql+asyncpg:") + "?ssl=prefer&timeout=3"
    for url in (postgres_url, of_asyncpg):
        assert query_limits_at(url) == ServerLimits(max_connections=100, reserved=3, limit=None)


def test_a_limit_of_the_role_counts(postgres_url: str) -> None:
    engine = create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        connection.execute(text("CREATE ROLE few LOGIN CONNECTION LIMIT 7"))
        connection.commit()
    assert query_limits_at(postgres_url.replace("owner@", "few@")).connections == 7
    engine.dispose()


@pytest.mark.guarantee("a fleet that exceeds the server's limits is reported, with numbers that fit")
def test_a_service_does_not_start_when_its_fleet_does_not_fit(postgres_url: str) -> None:
    engine = create_async_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))

    async def start(fleet: Fleet) -> None:
        async with engine.connect() as connection:
            await connection.run_sync(require_budget, fleet)
        await engine.dispose()

    asyncio.run(start(Fleet(hosts=2)))
    with pytest.raises(SettingsError, match="= 310 connections, and the server allows 97"):
        asyncio.run(start(Fleet(hosts=10)))


@pytest.mark.parametrize("url", ["", "nonsense", "postgresql://shop:hunter2@127.0.0.1:1/shop"])
def test_error_of_an_unreachable_server_hides_the_password(url: str) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read|cannot be asked: ") as caught:
        query_limits_at(url)
    assert "hunter2" not in str(caught.value)
