"""The mistakes of `naive` exist, so that a measurement can find them."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event, text

from tests.examples.support import shop_service
from tests.examples.support.shop_service import VARIANTS

CREDENTIALS = {"email": "user7@shop.example", "password": "correct horse battery staple"}

Statement = tuple[str, str]  # the SQL, and its call site: "shop/naive/orders.py:48"


@pytest.fixture(scope="module")
def naive_url(create_database: Callable[[], str]) -> str:
    url = create_database()
    shop_service.prepare(VARIANTS["naive"], url)
    return url


@pytest.fixture(scope="module")
def app(naive_url: str) -> Iterator[ModuleType]:
    """The application, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", naive_url)
        yield importlib.import_module("shop.naive.app")
    importlib.import_module("shop.naive.database").engine.dispose()


@pytest.fixture
def engine(app: ModuleType) -> Engine:
    return importlib.import_module("shop.naive.database").engine


@pytest.fixture
def statements(app: ModuleType) -> Iterator[list[Statement]]:
    """Every statement that an engine sends, with the innermost line of the shop that caused it."""
    sent: list[Statement] = []

    def record(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append((statement, call_site()))

    event.listen(Engine, "before_cursor_execute", record)
    yield sent
    event.remove(Engine, "before_cursor_execute", record)


def call_site() -> str:
    frame = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(shop_service.EXAMPLES):
            return f"{path.relative_to(shop_service.EXAMPLES)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def ask(app: ModuleType, path: str) -> httpx.Response:
    async def exchange() -> httpx.Response:
        transport = httpx.ASGITransport(app.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            token = (await client.post("/login", json=CREDENTIALS)).json()["token"]
            return await client.get(path, headers={"Authorization": f"Bearer {token}"})

    return asyncio.run(exchange())


def test_my_orders_send_a_statement_per_order_and_per_product(
    app: ModuleType, statements: list[Statement]
) -> None:
    orders = ask(app, "/api/orders").json()["orders"]
    products = {line["product_id"] for order in orders for line in order["items"]}
    login, one, *more = statements
    assert "users" in login[0]
    assert "orders" in one[0]
    assert len(orders) == 10
    assert len(more) == len(orders) + len(products)
    assert len(more) > 25

    places = Counter(place for _, place in more)
    assert set(places.values()) == {len(orders), len(products)}
    assert all(place.startswith("shop/naive/orders.py:") for place in places)
    assert len({sql for sql, _ in more}) == 2  # two statements, over and over


def test_the_control_a_page_of_products_sends_two_statements(
    app: ModuleType, statements: list[Statement]
) -> None:
    """The statements counted above come from the endpoint, not from the counter."""
    assert len(ask(app, "/api/products").json()["products"]) == 20
    assert len(statements) == 3  # the login, the total, the page


def plan(engine: Engine, query: str, *, index: str | None = None) -> str:
    with engine.connect() as connection:
        if index:
            connection.execute(text(f"CREATE INDEX ON {index}"))
        return "\n".join(connection.scalars(text(f"EXPLAIN {query}")))


MISSING = [
    ("orders", "user_id", "SELECT * FROM orders WHERE user_id = 500 ORDER BY created_at DESC LIMIT 10"),
    ("order_items", "product_id", "SELECT count(*) FROM order_items WHERE product_id = 5000"),
    ("products", "created_at, id", "SELECT * FROM products ORDER BY created_at DESC, id DESC LIMIT 20"),
]


@pytest.mark.parametrize(("table", "columns", "query"), MISSING)
def test_index_is_missing(engine: Engine, table: str, columns: str, query: str) -> None:
    assert f"Seq Scan on {table}" in plan(engine, query)
    assert "Seq Scan" not in plan(engine, query, index=f"{table} ({columns})")


def test_the_control_items_of_an_order_use_their_index(engine: Engine) -> None:
    assert "Index Scan" in plan(engine, "SELECT * FROM order_items WHERE order_id = 77777")


def test_third_checkout_waits_for_the_pool_of_two(engine: Engine) -> None:
    held = [engine.connect() for _ in range(2)]
    third = threading.Thread(target=lambda: engine.connect().close(), daemon=True)
    third.start()
    third.join(timeout=0.3)
    assert third.is_alive()
    held.pop().close()
    third.join(timeout=10)
    assert not third.is_alive()
    for connection in held:
        connection.close()


def test_restart_signs_all_users_out(naive_url: str, tmp_path: Path) -> None:
    for restarted in (False, True):
        with shop_service.serving(VARIANTS["naive"], naive_url, "", tmp_path / "log") as url:
            if not restarted:
                token = httpx.post(f"{url}/login", json=CREDENTIALS).json()["token"]
            answer = httpx.get(f"{url}/api/user/profile", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == (401 if restarted else 200)


def test_report_is_computed_inside_its_request(app: ModuleType) -> None:
    async def exchange() -> str:
        transport = httpx.ASGITransport(app.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            token = (await client.post("/login", json=CREDENTIALS)).json()["token"]
            client.headers["Authorization"] = f"Bearer {token}"
            task_id = (await client.post("/reports/monthly", json={"month": "2025-02"})).json()["task_id"]
            return (await client.get(f"/tasks/{task_id}")).json()["status"]

    assert asyncio.run(exchange()) == "finished"


@pytest.mark.parametrize(
    "path", ["/api/products", "/api/products/1", "/api/products/popular", "/static/shop.css"]
)
def test_responses_have_no_cache_headers(app: ModuleType, path: str) -> None:
    answer = ask(app, path)
    assert answer.status_code == 200
    assert "cache-control" not in answer.headers
    assert "expires" not in answer.headers
