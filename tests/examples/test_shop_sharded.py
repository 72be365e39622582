"""The shop with sharded orders, on its whole stack: one API over four shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import psycopg
import pytest

from tenfold.settings import Settings, load
from tenfold.stack import Stack, programs
from tenfold.types import Verdict
from tenfold.verify import CHECKS, run, select
from tests.examples.support.shop_service import EXAMPLES
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(EXAMPLES / "sharded.toml")


@pytest.fixture(scope="module")
def stack(settings: Settings, requires_server: Callable[[Any, str], Any]) -> Iterator[Stack]:
    requires_server(programs.find_redis(settings), "Redis")
    requires_server(programs.find_postgresql(settings), "PostgreSQL")
    with Stack(settings) as stack:
        yield stack


def sign_in(stack: Stack, user: int) -> httpx.Client:
    client = httpx.Client(base_url=stack.url, timeout=30)
    credentials = {"email": f"user{user}@shop.example", "password": "correct horse battery staple"}
    token = client.post("/login", json=credentials).raise_for_status().json()["token"]
    client.headers["Authorization"] = f"Bearer {token}"
    return client


@pytest.mark.parametrize("user", [1, 2, 4, 5])  # one on each shard
def test_order_is_placed_confirmed_and_listed(stack: Stack, user: int) -> None:
    with closing(sign_in(stack, user)) as client:
        items = [
            {"product_id": 7, "quantity": 2},
            {"product_id": 3, "quantity": 1},
            {"product_id": 7, "quantity": 1},
        ]
        placed = client.post("/api/orders", json={"items": items})
        assert placed.status_code == 201
        order = placed.json()
        assert [(line["product_id"], line["quantity"]) for line in order["items"]] == [(3, 1), (7, 3)]
        assert order["status"] == "pending" and int(order["id"]) > 2**53  # as text
        newest = client.get("/api/orders").json()["orders"]
        assert newest[0]["id"] == order["id"] and len(newest) == 10
        eventually(lambda: client.get("/api/orders").json()["orders"][0]["status"] == "paid", within_s=20)


def test_orders_of_all_shards_are_in_one_order(stack: Stack) -> None:
    with closing(sign_in(stack, 1)) as client:
        pages, after = [], ""
        for _ in range(5):
            page = client.get("/api/orders/all", params={"size": 30, "after": after}).json()
            pages += page["orders"]
            after = page["next"]
        moments = [order["created_at"] for order in pages]
        assert moments == sorted(moments, reverse=True) and len({order["id"] for order in pages}) == 150
        assert client.get("/api/orders/all", params={"after": "x"}).status_code == 422


def test_stock_that_is_not_there_places_no_order(stack: Stack) -> None:
    with closing(sign_in(stack, 2)) as client:
        before = client.get("/api/orders").json()
        scarce = client.get("/api/products/9999").json()["stock"]
        for _ in range(scarce // 100):
            client.post("/api/orders", json={"items": [{"product_id": 9999, "quantity": 100}]})
        refused = client.post("/api/orders", json={"items": [{"product_id": 9999, "quantity": 100}]})
        assert refused.status_code == 409
        assert (
            client.post("/api/orders", json={"items": [{"product_id": 10**6, "quantity": 1}]}).status_code
            == 422
        )
        placed = client.get("/api/orders").json()["orders"]
        assert all(order["items"][0]["quantity"] == 100 for order in placed if order not in before["orders"])


def test_shards_have_all_orders_of_the_data(stack: Stack) -> None:
    orders = 0
    for server in stack.servers:
        if server.kind == "shard server":
            for url in server.shard_urls().values():  # type: ignore[attr-defined]
                with psycopg.connect(url) as connection:
                    orders += connection.execute("SELECT count(*) FROM orders WHERE id < 1000000").fetchall()[
                        0
                    ][0]
    assert orders == 200_000


@pytest.mark.parametrize("name", ["rows are on their own shard", "keys are spread evenly"])
def test_checks_of_shards_pass(stack: Stack, settings: Settings, name: str) -> None:
    (outcome,) = run(select(CHECKS, [name]), stack, settings)
    assert outcome.finding.verdict is Verdict.PASS, outcome.finding
