"""The remedies of `scaled` for the mistakes of `naive`; test_shop_naive.py has the controls."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, create_engine, event, make_url

from tests.examples.support import shop_service
from tests.examples.support.shop_service import VARIANTS, Variant
from tests.examples.test_shop_naive import CREDENTIALS, ask, plan

SCALED = VARIANTS["scaled"]


@pytest.fixture
def url(filled: Callable[[Variant], str]) -> str:
    return filled(SCALED)


def profile(url: str, token: str) -> int:
    return httpx.get(f"{url}/api/user/profile", headers={"Authorization": f"Bearer {token}"}).status_code


def test_all_instances_share_logins_and_logouts(url: str, redis_url: str, tmp_path: Path) -> None:
    with shop_service.serving(SCALED, url, redis_url, tmp_path / "second") as second:
        with shop_service.serving(SCALED, url, redis_url, tmp_path / "first") as first:
            token = httpx.post(f"{first}/login", json=CREDENTIALS).json()["token"]
            assert profile(first, token) == profile(second, token) == 200
        assert profile(second, token) == 200  # the instance of the login is gone
        httpx.post(f"{second}/logout", headers={"Authorization": f"Bearer {token}"}).raise_for_status()
        with shop_service.serving(SCALED, url, redis_url, tmp_path / "third") as third:
            assert profile(third, token) == profile(second, token) == 401


def test_without_redis_the_catalogue_works_and_sessions_are_503(url: str, tmp_path: Path) -> None:
    with shop_service.serving(SCALED, url, "redis://127.0.0.1:1/0", tmp_path / "log") as alone:
        assert httpx.get(f"{alone}/api/products").status_code == 200
        answer = httpx.get(f"{alone}/api/orders", headers={"Authorization": f"Bearer {'x' * 22}.{'y' * 43}"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]


def test_my_orders_send_three_statements(url: str, redis_url: str) -> None:
    sent: list[str] = []

    def record(*arguments: object) -> None:
        sent.append(str(arguments[2]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        patch.setenv("REDIS_URL", redis_url)
        patch.setenv("SECRET_KEY", shop_service.SECRET_KEY)
        app = importlib.import_module("shop.scaled.app")
    event.listen(Engine, "before_cursor_execute", record)
    try:
        orders = ask(app, "/api/orders").json()["orders"]
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    assert len(orders) == 10
    asked = [statement for statement in sent if " FROM " in statement.replace("\n", " ")]
    assert len(asked) == 3, sent  # the login, the orders, their items with the products


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM orders WHERE user_id = 500 ORDER BY created_at DESC LIMIT 10",
        "SELECT count(*) FROM order_items WHERE product_id = 5000",
        "SELECT * FROM products ORDER BY created_at DESC, id DESC LIMIT 20",
    ],
)
def test_no_index_is_missing(url: str, query: str) -> None:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    assert "Seq Scan" not in plan(engine, query)
    engine.dispose()
