"""Monitored pools for the tests, and their findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine

from tenfold.database import pool_options
from tenfold.database.pools.pool import MonitoredPool
from tenfold.types import Finding
from tests.measure import conftest

postgres_url = conftest.postgres_url
FOLDER = Path(__file__).parents[1] / "pools"


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url.replace("postgresql:", "postgresql+psycopg:")


def options(url: str, **changed: Any) -> dict[str, Any]:
    plain = {"pool_size": 1, "max_overflow": 1, "timeout_s": 0.2, "root": FOLDER, "stack_every": 1}
    return pool_options(url, **{"metrics": False, **plain, **changed})


@pytest.fixture
def engine_of(url: str) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(**changed: Any) -> Engine:
        engines.append(create_engine(url, **options(url, **changed)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


def pool(engine: Engine | AsyncEngine) -> MonitoredPool:
    assert isinstance(engine.pool, MonitoredPool)
    return engine.pool


def found(engine: Engine | AsyncEngine, kind: str) -> Finding:
    return next(finding for finding in pool(engine).findings() if finding.check == kind)


def kinds(engine: Engine | AsyncEngine) -> set[str]:
    return {finding.check for finding in pool(engine).findings()}


def line(file: str, mark: str) -> str:
    """The line with the comment ``# mark: …``, as "test_pool.py:40"."""
    lines = Path(file).read_text().splitlines()
    number = next(n for n, text in enumerate(lines, 1) if text.endswith(f"# mark: {mark}"))
    return f"{Path(file).name}:{number}"
