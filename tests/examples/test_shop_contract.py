"""The shop's API, the same for every variant."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

SignIn = Callable[[int], httpx.Client]
ORDER = {"items": [{"product_id": 7, "quantity": 2}, {"product_id": 3, "quantity": 1}]}
CREDENTIALS = {"email": "user1@shop.example", "password": "correct horse battery staple"}
NO_TASK = "00000000-0000-0000-0000-000000000000"

# method, path, body, signed in, status
EXCHANGES = [
    ("GET", "/health/live", None, False, 200),
    ("GET", "/health/ready", None, False, 200),
    ("POST", "/login", CREDENTIALS, False, 200),
    ("POST", "/login", {**CREDENTIALS, "password": "wrong"}, False, 401),
    ("POST", "/login", {**CREDENTIALS, "email": "unknown@shop.example"}, False, 401),
    ("POST", "/login", {**CREDENTIALS, "email": "no address"}, False, 422),
    ("POST", "/login", {"email": "user1@shop.example"}, False, 422),
    ("POST", "/login", {**CREDENTIALS, "password": "x" * 201}, False, 422),
    ("GET", "/api/products", None, False, 200),
    ("GET", "/api/products?page=500&size=20", None, False, 200),
    ("GET", "/api/products?page=501&size=20", None, False, 200),
    ("GET", "/api/products?page=0", None, False, 422),
    ("GET", "/api/products?size=101", None, False, 422),
    ("GET", "/api/products?page=one", None, False, 422),
    ("GET", "/api/products/popular", None, False, 200),
    ("GET", "/api/products/1", None, False, 200),
    ("GET", "/api/products/10000", None, False, 200),
    ("GET", "/api/products/10001", None, False, 404),
    ("GET", "/api/products/0", None, False, 422),
    ("GET", "/api/products/99999999999", None, False, 422),
    ("GET", "/api/products/unpopular", None, False, 422),
    ("POST", "/api/orders", ORDER, False, 401),
    ("POST", "/api/orders", ORDER, True, 201),
    ("POST", "/api/orders", {"items": []}, True, 422),
    ("POST", "/api/orders", {"items": [{"product_id": 1, "quantity": 0}]}, True, 422),
    ("POST", "/api/orders", {"items": [{"product_id": 1, "quantity": 101}]}, True, 422),
    ("POST", "/api/orders", {"items": [{"product_id": 10_001, "quantity": 1}]}, True, 422),
    ("POST", "/api/orders", {"items": [{"product_id": 1, "quantity": 1}] * 51}, True, 422),
    ("GET", "/api/orders", None, False, 401),
    ("GET", "/api/orders", None, True, 200),
    ("GET", "/api/user/profile", None, False, 401),
    ("GET", "/api/user/profile", None, True, 200),
    ("POST", "/reports/monthly", {"month": "2025-06"}, False, 401),
    ("POST", "/reports/monthly", {"month": "2025-06"}, True, 202),
    ("POST", "/reports/monthly", {"month": "2025-13"}, True, 422),
    ("POST", "/reports/monthly", {"month": "June"}, True, 422),
    ("GET", f"/tasks/{NO_TASK}", None, False, 401),
    ("GET", f"/tasks/{NO_TASK}", None, True, 404),
    ("GET", "/tasks/1", None, True, 422),
    ("GET", "/static/index.html", None, False, 200),
    ("GET", "/static/shop.css", None, False, 200),
    ("GET", "/static/nothing.css", None, False, 404),
    ("GET", "/static/../naive/database.py", None, False, 404),
    ("GET", "/static/%2e%2e/naive/database.py", None, False, 404),
    ("DELETE", "/api/products/1", None, True, 405),
    ("GET", "/nothing", None, False, 404),
]


@pytest.mark.parametrize(("method", "path", "body", "signed_in", "status"), EXCHANGES)
def test_status_codes(
    client: httpx.Client, sign_in: SignIn, method: str, path: str, body: Any, signed_in: bool, status: int
) -> None:
    visitor = sign_in(19_000) if signed_in else client
    answer = visitor.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    if not path.startswith("/static"):
        assert isinstance(answer.json(), dict)
    if status >= 400 and not path.startswith("/static"):
        assert answer.json()["detail"]


def test_invalid_token_is_401(client: httpx.Client) -> None:
    for header in ("Bearer invented", "Bearer", "Basic dXNlcjE6", "invented"):
        answer = client.get("/api/orders", headers={"Authorization": header})
        assert answer.status_code == 401, header
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_each_login_issues_a_new_token(client: httpx.Client) -> None:
    tokens = {client.post("/login", json=CREDENTIALS).json()["token"] for _ in range(3)}
    assert len(tokens) == 3
    assert all(len(token) >= 32 for token in tokens)


def test_catalogue_pages_have_no_gaps_or_repetitions(client: httpx.Client) -> None:
    first, second = (client.get(f"/api/products?page={page}&size=100").json() for page in (1, 2))
    assert (first["page"], first["size"], first["total"]) == (1, 100, 10_000)
    ids = [product["id"] for page in (first, second) for product in page["products"]]
    assert len(set(ids)) == 200
    assert client.get("/api/products?page=3&size=50").json()["products"] == second["products"][:50]
    assert client.get("/api/products?page=101&size=100").json()["products"] == []


def test_product_is_the_same_alone_and_in_the_list(client: httpx.Client) -> None:
    listed = client.get("/api/products?page=40").json()["products"][3]
    assert set(listed) == {"id", "name", "description", "category", "price_cents", "stock"}
    assert client.get(f"/api/products/{listed['id']}").json() == listed


def test_popular_products_are_ten_with_the_best_seller_first(client: httpx.Client) -> None:
    popular = client.get("/api/products/popular").json()["products"]
    assert len(popular) == 10
    assert set(popular[0]) == {"id", "name", "price_cents", "sold"}
    assert popular[0]["id"] == 1
    assert [product["sold"] for product in popular] == sorted(
        (product["sold"] for product in popular), reverse=True
    )


def test_order_is_returned_stored_and_taken_from_stock(sign_in: SignIn) -> None:
    shopper = sign_in(18_000)
    before = {product_id: shopper.get(f"/api/products/{product_id}").json() for product_id in (41, 42)}
    lines = [(42, 1), (41, 2), (42, 3)]  # one product twice: one line of four
    body = {"items": [{"product_id": product_id, "quantity": quantity} for product_id, quantity in lines]}
    order = shopper.post("/api/orders", json=body).json()

    assert set(order) == {"id", "status", "total_cents", "created_at", "items"}
    assert order["status"] in ("paid", "pending")  # `scaled` takes the payment in the background
    assert datetime.now(UTC) - datetime.fromisoformat(order["created_at"]) < timedelta(minutes=1)
    assert order["items"] == [
        {
            "product_id": product_id,
            "name": before[product_id]["name"],
            "quantity": quantity,
            "unit_price_cents": before[product_id]["price_cents"],
        }
        for product_id, quantity in ((41, 2), (42, 4))
    ]
    assert order["total_cents"] == 2 * before[41]["price_cents"] + 4 * before[42]["price_cents"]
    assert {**shopper.get("/api/orders").json()["orders"][0], "status": order["status"]} == order
    assert shopper.get("/api/products/41").json()["stock"] == before[41]["stock"] - 2
    assert shopper.get("/api/products/42").json()["stock"] == before[42]["stock"] - 4


def test_failed_order_is_rolled_back(sign_in: SignIn) -> None:
    shopper = sign_in(18_001)
    orders = shopper.get("/api/orders").json()
    stock = shopper.get("/api/products/50").json()["stock"]
    body = {"items": [{"product_id": 50, "quantity": 1}, {"product_id": 10_001, "quantity": 1}]}
    assert shopper.post("/api/orders", json=body).status_code == 422
    assert shopper.get("/api/orders").json() == orders
    assert shopper.get("/api/products/50").json()["stock"] == stock


def test_order_beyond_the_stock_is_409(sign_in: SignIn) -> None:
    shopper = sign_in(18_002)
    body = {"items": [{"product_id": 9_999, "quantity": 100}] * 50}
    statuses = [shopper.post("/api/orders", json=body).status_code for _ in range(3)]
    assert 409 in statuses
    assert shopper.get("/api/products/9999").json()["stock"] >= 0


def test_my_orders_are_the_ten_newest_of_the_user(sign_in: SignIn) -> None:
    first, second = sign_in(5), sign_in(6)
    mine, theirs = (shopper.get("/api/orders").json()["orders"] for shopper in (first, second))
    assert len(mine) == len(theirs) == 10
    assert not {order["id"] for order in mine} & {order["id"] for order in theirs}
    times = [datetime.fromisoformat(order["created_at"]) for order in mine]
    assert times == sorted(times, reverse=True)
    for order in mine:
        assert order["total_cents"] == sum(
            line["quantity"] * line["unit_price_cents"] for line in order["items"]
        )


def test_profile_counts_the_orders(sign_in: SignIn) -> None:
    shopper = sign_in(18_003)
    before = shopper.get("/api/user/profile").json()
    assert set(before) == {"id", "email", "name", "member_since", "orders"}
    assert (before["id"], before["email"]) == (18_003, "user18003@shop.example")
    shopper.post("/api/orders", json=ORDER)
    assert shopper.get("/api/user/profile").json() == {**before, "orders": before["orders"] + 1}


def test_report_is_a_task_that_finishes(sign_in: SignIn) -> None:
    shopper = sign_in(2)
    accepted = shopper.post("/reports/monthly", json={"month": "2025-06"})
    assert set(accepted.json()) == {"task_id"}
    task = finished(shopper, accepted.json()["task_id"])
    report = task["result"]
    assert set(report) == {"month", "orders", "revenue_cents", "revenue_cents_by_category", "best_sellers"}
    assert report["month"] == "2025-06"
    assert report["orders"] == 16_439  # 30 of 365 days
    assert report["revenue_cents"] == sum(report["revenue_cents_by_category"].values())
    assert len(report["best_sellers"]) == 10


def test_report_of_a_month_without_orders_is_empty(sign_in: SignIn) -> None:
    shopper = sign_in(2)
    task_id = shopper.post("/reports/monthly", json={"month": "2001-12"}).json()["task_id"]
    report = finished(shopper, task_id)["result"]
    assert (report["orders"], report["revenue_cents"], report["best_sellers"]) == (0, 0, [])


def test_task_of_another_user_is_404(sign_in: SignIn) -> None:
    task_id = sign_in(3).post("/reports/monthly", json={"month": "2001-12"}).json()["task_id"]
    assert sign_in(4).get(f"/tasks/{task_id}").status_code == 404


def finished(shopper: httpx.Client, task_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        task: dict[str, Any] = shopper.get(f"/tasks/{task_id}").raise_for_status().json()
        assert set(task) == {"task_id", "status", "result"}
        assert task["task_id"] == task_id
        if task["status"] == "finished":
            return task
        assert task["status"] in {"queued", "running"}
        assert task["result"] is None
        time.sleep(0.1)
    raise AssertionError(f"task {task_id} did not finish")
