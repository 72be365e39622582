"""Shards with replicas: a visitor reads what they wrote, whichever shards they used."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from tenfold.database import ConsistencyMiddleware, DatabaseRouter
from tenfold.sharding import ShardedDatabase
from tests.database.conftest import KEY, Servers, start_servers
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Base, Order


@pytest.fixture(scope="module")
def replicated(shards: Shards) -> Iterator[Servers]:
    """A primary with two replicas, which becomes shard2's server for these tests."""
    with start_servers() as servers:
        yield servers


@pytest.fixture
def database(shards: Shards, replicated: Servers) -> Iterator[ShardedDatabase]:
    """A directory of its own with one shard that has replicas, and five that have none."""
    from tenfold.sharding.administration import DirectoryStore, create_shards

    url, replicas = replicated.urls
    store = DirectoryStore(url)
    create_shards(store, {"one": url}, ("int",))
    router = DatabaseRouter(url, replicas, keys=KEY, metrics=False)
    with router.write() as session:
        Base.metadata.create_all(session.connection())
    replicated.wait_for_replicas()
    found = ShardedDatabase(store, {"one": router})
    yield found
    found.close()
    router.close()
    store.close()


def app_of(database: ShardedDatabase) -> FastAPI:
    app = FastAPI()
    app.add_middleware(ConsistencyMiddleware, router=database)

    @app.post("/{user}/{total}")
    def place(user: int, total: int) -> None:
        with database.session_for(user) as session:
            session.add(Order(user_id=user, total=total))

    @app.get("/{user}")
    def totals(user: int) -> list[int]:
        with database.session_for(user, read_only=True) as session:
            return list(
                session.scalars(select(Order.total).where(Order.user_id == user).order_by(Order.total))
            )

    @app.get("/all/{user}")
    def everywhere(user: int) -> list[int]:
        return list(database.query_all(select(Order.total).where(Order.user_id == user)).scalars())

    return app


_users = itertools.count(5_000_000)


async def use(app: FastAPI, *, cookies: bool) -> tuple[list[int], list[int]]:
    user = next(_users)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        await client.post(f"/{user}/7")
        if not cookies:
            client.cookies.clear()
        return (await client.get(f"/{user}")).json(), (await client.get(f"/all/{user}")).json()


@pytest.mark.guarantee(
    "a visitor of a sharded service reads what they wrote", pattern="sharding", under="replicas that are late"
)
def test_own_write_is_read_from_a_late_shard(database: ShardedDatabase, replicated: Servers) -> None:
    with ExitStack() as exits:
        for replica in replicated.replicas:
            exits.enter_context(replicated.hold_back(replica, 3000))
        assert asyncio.run(use(app_of(database), cookies=True)) == ([7], [7])


@pytest.mark.control("a visitor of a sharded service reads what they wrote", "without the token")
def test_the_control_without_the_token_the_read_is_stale(
    database: ShardedDatabase, replicated: Servers
) -> None:
    with ExitStack() as exits:
        for replica in replicated.replicas:
            exits.enter_context(replicated.hold_back(replica, 3000))
        assert asyncio.run(use(app_of(database), cookies=False))[0] == []


# ------------------------------------------------------------------ the token


class Router:
    """A shard's router as far as tokens go."""

    token_s = 60.0

    def __init__(self, url: str) -> None:
        self.inner = DatabaseRouter(url, keys=KEY, metrics=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_token_names_its_shards_and_the_fifth_means_the_primary(shards: Shards) -> None:
    """Six shards on four databases: tokens of the latest four are carried, and a star for the others."""
    from tenfold.sharding.consistency import ShardTokens

    urls = [*shards.urls.values(), *list(shards.urls.values())[:2]]
    routers = {f"s{number}": Router(url) for number, url in enumerate(urls)}
    tokens = ShardTokens(routers)
    assert tokens.text() is None
    with tokens.open(None) as context:
        for router in list(routers.values())[:2]:
            with router.write() as session:
                session.execute(select(1))
        text = tokens.text()
        assert text and [part.partition(".")[0] for part in text.split("~")] == ["s0", "s1"]
        assert context.has_changed and context.has_written
        context.has_changed = context.has_written = False
    with tokens.open(text) as context:
        assert context.token and not context.has_changed
        assert not tokens.require_primary("s2")
        for router in routers.values():
            with router.write() as session:
                session.execute(select(1))
        text = tokens.text()
        assert text and text.endswith("~*") and text.count("~") == 4 and len(text) < 500
    with tokens.open(text):
        named = {part.partition(".")[0] for part in text.split("~")} - {"*"}
        assert {name for name in routers if not tokens.require_primary(name)} == named
    with tokens.open("garbage~s0.x~~*") as context:
        assert tokens.require_primary("s0") and context.token
    with tokens.open(None) as outer:
        with tokens.open(text) as brought:
            pass
        outer.add(brought)
        assert outer.others and tokens.text() == text
    for router in routers.values():
        router.close()
