"""The shop's data: reproducible, of a realistic size, and consistent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import chain

import psycopg
import pytest

from shop import passwords, rows
from tests.examples.support import shop_service
from tests.examples.support.shop_service import Variant

TABLES = ("users", "products", "orders", "order_items")
CHECKSUM = "SELECT md5(string_agg(md5(t::text), '' ORDER BY t::text COLLATE \"C\")) FROM {} AS t"


def checksums(database_url: str) -> dict[str, str]:
    with psycopg.connect(database_url) as connection:
        return {table: connection.execute(CHECKSUM.format(table)).fetchone()[0] for table in TABLES}


def scalar(database_url: str, query: str) -> int:
    with psycopg.connect(database_url) as connection:
        return connection.execute(query).fetchone()[0]


@pytest.fixture(scope="module")
def untouched(variant: Variant, create_database: Callable[[], str]) -> str:
    """A database that no service has written to."""
    url = create_database()
    shop_service.prepare(variant, url)
    return url


def test_rows_have_the_recorded_digest() -> None:
    """Earlier results stay comparable only while this digest stays."""
    digest = hashlib.sha256()
    for part in chain(rows.users(), rows.products(), *rows.orders()):
        digest.update(part.encode())
    assert digest.hexdigest() == "54c83da77a79e0dafc08d81e6ae49be09faed14595554605e621d768e5aa460a"


def test_the_control_another_seed_gives_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(rows.orders())
    monkeypatch.setattr(rows, "SEED", rows.SEED + 1)
    assert next(rows.orders()) != first


def test_loading_again_gives_the_same_tables(variant: Variant, untouched: str) -> None:
    first = checksums(untouched)
    with psycopg.connect(untouched) as connection:
        connection.execute("DELETE FROM order_items WHERE product_id = 1")
    assert checksums(untouched)["order_items"] != first["order_items"]  # the checksum sees a change
    shop_service.prepare(variant, untouched)
    assert checksums(untouched) == first


def test_row_counts(untouched: str) -> None:
    counts = {table: scalar(untouched, f"SELECT count(*) FROM {table}") for table in TABLES}
    assert counts["users"] == 20_000
    assert counts["products"] == 10_000
    assert counts["orders"] == 200_000
    assert 2.5 < counts["order_items"] / counts["orders"] < 3.5


# Queries that count violations.
CONSISTENCY = {
    "every order has items": """
        SELECT count(*) FROM orders
        WHERE NOT EXISTS (SELECT FROM order_items WHERE order_id = orders.id)""",
    "totals are the sums of the items": """
        SELECT count(*) FROM (
            SELECT total_cents, sum(quantity * unit_price_cents) AS items
            FROM orders JOIN order_items ON order_id = orders.id GROUP BY orders.id) AS o
        WHERE total_cents <> items""",
    "items cost what the product costs": """
        SELECT count(*) FROM order_items JOIN products ON product_id = products.id
        WHERE unit_price_cents <> price_cents""",
    "product names are distinct": "SELECT count(*) - count(DISTINCT name) FROM products",
    "no order is older than its user": """
        SELECT count(*) FROM orders JOIN users ON user_id = users.id
        WHERE orders.created_at < users.created_at""",
    "all orders are of 2025": """
        SELECT count(*) FROM orders
        WHERE created_at < '2025-01-01 00:00Z' OR created_at >= '2026-01-01 00:00Z'""",
    "foreign keys are checked": """
        SELECT 4 - count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated""",
}


@pytest.mark.parametrize("claim", CONSISTENCY)
def test_data_is_consistent(untouched: str, claim: str) -> None:
    assert scalar(untouched, CONSISTENCY[claim]) == 0


def test_sequences_continue_after_the_loaded_rows(untouched: str) -> None:
    with psycopg.connect(untouched) as connection:
        new = connection.execute(
            "INSERT INTO orders (user_id, status, total_cents, created_at) VALUES (1, 'paid', 1, now()) "
            "RETURNING id"
        ).fetchone()[0]
        connection.rollback()
    assert new == 200_001


def test_sales_follow_zipf(untouched: str) -> None:
    """Twice the rank, half the sales; the first hundred products sell about half of everything."""
    first, second, fourth = (
        scalar(untouched, f"SELECT count(*) FROM order_items WHERE product_id = {rank}") for rank in (1, 2, 4)
    )
    assert 1.4 < first / second < 2.2
    assert 1.4 < second / fourth < 2.2
    top = scalar(untouched, "SELECT count(*) FROM order_items WHERE product_id <= 100")
    assert 0.45 < top / scalar(untouched, "SELECT count(*) FROM order_items") < 0.55


def test_users_of_the_scenario_have_at_least_twenty_orders(untouched: str) -> None:
    """The scenario's users always get a full page, so that their cost does not drift during a measurement."""
    query = (
        "SELECT min(n) FROM (SELECT count(*) AS n FROM orders WHERE user_id <= 1000 GROUP BY user_id) AS o"
    )
    assert scalar(untouched, query) >= 20


def test_load_leaves_no_vacuum_due(untouched: str) -> None:
    """Autovacuum has no work during a measurement: all pages are visible, no new rows are counted."""
    unseen = (
        "SELECT count(*) FROM pg_class JOIN pg_stat_user_tables ON relid = oid WHERE relallvisible < relpages"
    )
    new = "SELECT sum(n_ins_since_vacuum + n_mod_since_analyze) FROM pg_stat_user_tables"
    assert scalar(untouched, unseen) == 0
    assert scalar(untouched, new) < 10  # rows that earlier tests wrote


def test_passwords() -> None:
    stored = passwords.hashed("secret")
    assert passwords.matches("secret", stored)
    assert not passwords.matches("Secret", stored)
    assert passwords.hashed("secret") != stored  # a salt of its own
    assert "secret" not in stored
