"""Real servers for the stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenfold.settings import Settings
from tenfold.stack.programs import Program, find_postgresql
from tests.support.servers import PostgreSQLServer, RedisServer


@pytest.fixture(scope="session")
def redis_server(redis_program: Path) -> Iterator[RedisServer]:
    """One for all tests that leave it as it was."""
    server = RedisServer(redis_program)
    yield server
    server.close()


@pytest.fixture
def own_redis(redis_program: Path) -> Iterator[RedisServer]:
    """One to be paused, killed or filled."""
    server = RedisServer(redis_program)
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgresql_server(
    requires_server: Callable[[Program | None, str], Program],
) -> Iterator[PostgreSQLServer]:
    server = PostgreSQLServer(requires_server(find_postgresql(Settings()), "PostgreSQL").path.parent)
    yield server
    server.close()
