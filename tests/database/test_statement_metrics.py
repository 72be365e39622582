"""Durations of statements, by their kind."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from tenfold.database.statement_metrics import _operation, measure_statements


def counted(registry: CollectorRegistry, operation: str) -> float:
    labels = {"db_system_name": "sqlite", "db_operation_name": operation}
    return registry.get_sample_value("db_client_operation_duration_seconds_count", labels) or 0


def test_statements_are_measured_by_their_kind() -> None:
    registry = CollectorRegistry()
    engine = create_engine("sqlite://")
    measure_statements(engine, registry=registry)
    with engine.begin() as connection:
        connection.execute(text("create table t (id int)"))
        for _ in range(3):
            connection.execute(text("insert into t values (1)"))
        connection.execute(text("/* a comment */ select * from t")).all()
    with engine.connect() as connection, pytest.raises(OperationalError):
        connection.execute(text("select * from nothing"))
    assert [counted(registry, name) for name in ("other", "INSERT", "SELECT", "DELETE")] == [1, 3, 2, 0]


def test_engines_for_asyncio_are_measured() -> None:
    registry = CollectorRegistry()

    async def run() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        measure_statements(engine, registry=registry)
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
        await engine.dispose()

    asyncio.run(run())
    assert counted(registry, "SELECT") == 1


@pytest.mark.parametrize(
    ("statement", "operation"),
    [
        ("select 1", "SELECT"),
        ("  -- x\n(SELECT 1)", "SELECT"),
        ("/* a */ /* b */ with x as (select 1) select * from x", "WITH"),
        ("vacuum", "other"),
        ("", "other"),
        ("123", "other"),
    ],
)
def test_kind_of_a_statement_is_its_first_word(statement: str, operation: str) -> None:
    assert _operation(statement) == operation
