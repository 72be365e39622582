"""One PostgreSQL, one filled database and one running service a variant, for the whole test session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

from tenfold.settings import Settings
from tenfold.stack.programs import Program, find_redis
from tests.examples.support import shop_postgresql, shop_service
from tests.examples.support.shop_service import EXAMPLES, VARIANTS, Variant
from tests.support.servers import RedisServer

sys.path.insert(0, str(EXAMPLES))

SignIn = Callable[[int], httpx.Client]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a server's maintenance database."""
    programs = shop_postgresql.programs()
    if programs is None:
        reason = "PostgreSQL's programs are missing: pip install 'tenfold[stack]'"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with shop_postgresql.running(programs) as url:
        yield url


@pytest.fixture(scope="session")
def create_database(postgresql: str) -> Callable[[], str]:
    """Returns a function that creates an empty database and returns its URL."""
    numbers = count(1)

    def create() -> str:
        name = f"shop_{next(numbers)}"
        with psycopg.connect(postgresql, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return postgresql.rpartition("/")[0] + f"/{name}"

    return create


@pytest.fixture(scope="session")
def redis_url(requires_server: Callable[[Program | None, str], Program]) -> Iterator[str]:
    server = RedisServer(requires_server(find_redis(Settings()), "Redis").path)
    yield server.url
    server.close()


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


@pytest.fixture(scope="session")
def filled(create_database: Callable[[], str]) -> Callable[[Variant], str]:
    """A variant's database, filled, for tests that may share it."""

    @cache
    def fill(variant: Variant) -> str:
        url = create_database()
        shop_service.prepare(variant, url)
        return url

    return fill


@pytest.fixture(scope="session")
def database_url(variant: Variant, filled: Callable[[Variant], str]) -> str:
    return filled(variant)


@pytest.fixture(scope="session")
def service_url(
    variant: Variant, database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("shop")
    with (
        shop_service.working(variant, database_url, redis_url, folder),
        shop_service.serving(variant, database_url, redis_url, folder / "log") as url,
    ):
        yield url


@pytest.fixture
def client(service_url: str) -> Iterator[httpx.Client]:
    """A client that has not signed in."""
    with httpx.Client(base_url=service_url, timeout=30) as client:
        yield client


@pytest.fixture
def sign_in(service_url: str) -> Iterator[SignIn]:
    """Returns a function that signs a user in, by number, and returns their client."""
    clients: list[httpx.Client] = []

    def sign_in(user_id: int) -> httpx.Client:
        client = httpx.Client(base_url=service_url, timeout=30)
        clients.append(client)
        credentials = {"email": f"user{user_id}@shop.example", "password": "correct horse battery staple"}
        token = client.post("/login", json=credentials).raise_for_status().json()["token"]
        client.headers["Authorization"] = f"Bearer {token}"
        return client

    yield sign_in
    for client in clients:
        client.close()
