"""Thirteen defects of caching query results by hand: each shown on the naive decorator, and absent here."""

from __future__ import annotations

import asyncio
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from tenfold.caching import QueryCache
from tenfold.errors import SettingsError
from tests.caching.support.naive import naive_cache
from tests.support.servers import RedisServer

Decorator = Callable[..., Callable[..., Any]]


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def naive(client: redis.Redis) -> Decorator:
    return lambda **_: naive_cache(client)


@pytest.fixture
def cached(make_cache: Callable[..., QueryCache]) -> Decorator:
    return make_cache().query


# Each case takes a decorator and returns whether it found the damage.


def functions_of_one_name_collide(cache: Decorator) -> bool:
    def module(name: str) -> Callable[[], str]:
        found = types.ModuleType(name)
        exec(f"def current() -> str: return {name!r}", found.__dict__)
        found.current.__module__ = name
        return cache()(found.current)

    return module("orders")() == module("invoices")()


def ways_to_call_differ(cache: Decorator) -> bool:
    loads: list[int] = []

    @cache()
    def read(number: int, size: int = 10) -> int:
        loads.append(number)
        return number

    read(1), read(number=1), read(1, 10), read(size=10, number=1)
    return len(loads) > 1


class Service:
    """An instance for each request, as a dependency of FastAPI is."""


def addresses_are_in_keys(cache: Decorator) -> bool:
    loads: list[int] = []

    @cache()
    def read(session: Session, number: int) -> int:
        loads.append(number)
        return number

    sessions = [Session(), Session()]
    for session in sessions:
        read(session, 1)
    return len(loads) > 1


def types_are_merged(cache: Decorator) -> bool:
    @cache()
    def name_of(value: int | str | bool | list[str]) -> str:
        return type(value).__name__

    @dataclass
    class Looks:
        def __repr__(self) -> str:
            return "1"

    calls = [(1, "int"), ("1", "str"), (True, "bool")]
    found = [name_of(value=value) for value, _ in calls]
    return found != [name for _, name in calls] or name_of(1) != "int"


tenant: ContextVar[str] = ContextVar("tenant", default="")


def tenants_share_values(cache: Decorator) -> bool:
    @cache()
    def secret() -> str:
        return f"of {tenant.get()}"

    found = []
    for name in ("alpha", "beta"):
        mark = tenant.set(name)
        found.append(secret())
        tenant.reset(mark)
    return found[1] != "of beta"


def types_are_lost(cache: Decorator) -> bool:
    value = (Decimal("1.10"), datetime(2026, 1, 2, tzinfo=UTC), UUID(int=1), {1: "a"})

    @cache()
    def read() -> tuple[Decimal, datetime, UUID, dict[int, str]]:
        return value

    return (read(), read())[1] != value


def none_is_a_miss(cache: Decorator) -> bool:
    loads: list[int] = []

    @cache()
    def read() -> str | None:
        loads.append(1)
        return None

    read(), read()
    return len(loads) > 1


def coroutines_are_cached(cache: Decorator) -> bool:
    @cache()
    async def read() -> int:
        return 1

    async def main() -> list[int]:
        return [await read(), await read()]

    try:
        return asyncio.run(main()) != [1, 1]
    except TypeError:
        return True


def all_load_at_once(cache: Decorator) -> bool:
    loads: list[int] = []

    @cache()
    def read() -> int:
        loads.append(1)
        time.sleep(0.1)
        return 1

    threads = [threading.Thread(target=read) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return len(loads) > 1


@pytest.mark.parametrize(
    "damage",
    [
        functions_of_one_name_collide,
        ways_to_call_differ,
        addresses_are_in_keys,
        none_is_a_miss,
        types_are_lost,
        coroutines_are_cached,
        all_load_at_once,
    ],
)
class TestDefect:
    def test_is_absent(self, cached: Decorator, damage: Callable[[Decorator], bool]) -> None:
        assert not damage(cached)

    def test_the_control_naive_decorator_has_it(
        self, naive: Decorator, damage: Callable[[Decorator], bool]
    ) -> None:
        assert damage(naive)


def test_types_are_apart(cached: Decorator) -> None:
    assert not types_are_merged(cached)


@pytest.mark.guarantee(
    "a value cached for one tenant reaches no other", pattern="caching", under="QueryCache(vary=…)"
)
def test_tenants_are_apart(make_cache: Callable[..., QueryCache]) -> None:
    assert not tenants_share_values(make_cache(vary=tenant.get).query)


@pytest.mark.control("a value cached for one tenant reaches no other", "the naive decorator")
def test_the_control_tenants_share_values(naive: Decorator) -> None:
    assert tenants_share_values(naive)


def test_methods_are_refused_until_self_is_ignored(cached: Decorator) -> None:
    def method(self: Service, number: int) -> int:
        return number

    with pytest.raises(SettingsError, match=r"'self' .* ignore=\['self'\]"):
        cached()(method)
    loads = cached(ignore=["self"])(method)
    assert loads(Service(), 1) == loads(Service(), 1)


# ------------------------------------------------------------------ transactions


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    with engine.begin() as connection:
        connection.execute(text("create table items (id int primary key, name text)"))
        connection.execute(text("insert into items values (1, 'old')"))
    yield engine
    engine.dispose()


def test_fill_from_an_uncommitted_transaction_is_not_kept(
    make_cache: Callable[..., QueryCache], engine: Engine
) -> None:
    cache = make_cache()
    from sqlalchemy import column, table, update

    items = table("items", column("id"), column("name"))

    @cache.query(ttl=60, tags=["items"])
    def name(session: Session) -> str:
        return str(session.execute(text("select name from items")).scalar_one())

    with Session(engine) as session:
        session.execute(update(items).values(name="never committed"))
        assert name(session) == "never committed"
        session.rollback()
    with Session(engine) as session:
        assert name(session) == "old"


def test_the_control_naive_decorator_keeps_what_was_never_committed(naive: Decorator, engine: Engine) -> None:
    with Session(engine) as session:

        @naive()
        def name() -> str:
            return str(session.execute(text("select name from items")).scalar_one())

        session.execute(text("update items set name = 'never committed'"))
        name()
        session.rollback()
        assert name() == "never committed"


# ------------------------------------------------------------------ Redis


def test_redis_down_takes_nothing_down(client: redis.Redis) -> None:
    cache = QueryCache("redis://127.0.0.1:1", metrics=False)

    @cache.query(ttl=60)
    def read() -> int:
        return 1

    assert read() == 1
    cache.close()


@pytest.mark.control("a cached function returns a value, never an error of the cache", "the naive decorator")
def test_the_control_naive_decorator_fails_with_redis() -> None:
    @naive_cache(redis.Redis(port=1))
    def read() -> int:
        return 1

    with pytest.raises(redis.ConnectionError):
        read()


def test_keys_are_bounded_and_never_scanned_for(
    make_cache: Callable[..., QueryCache], redis_server: RedisServer
) -> None:
    cache = make_cache()

    @cache.query(ttl=60, tags=["items"])
    def read(words: str) -> int:
        return len(words)

    redis_server.command("CONFIG", "RESETSTAT")
    assert read("x" * 1_000_000) == 1_000_000
    cache.invalidate("items")
    cache.drop_function(read)
    assert read("x" * 1_000_000) == 1_000_000
    assert not {"keys", "scan", "flushdb", "flushall"} & redis_server.calls().keys()
    client = redis.Redis.from_url(redis_server.url)
    assert all(len(key) < 400 for key in client.scan_iter())
    client.close()
