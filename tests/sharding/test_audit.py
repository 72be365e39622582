"""What keeps tables from being sharded, found in a real database; and the SQL that mends it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.orm import Mapped, mapped_column

from tenfold.errors import DirectoryError, SettingsError
from tenfold.sharding.audit import audit_tables, preparing_statements, primary_key, registered_tables
from tenfold.sharding.tables import Sharded, bucket_column, shard_table
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Base

SCHEMA = """
CREATE SCHEMA audited;
CREATE TABLE audited.products (id int PRIMARY KEY);
CREATE TABLE audited.users (id bigserial PRIMARY KEY, email text NOT NULL UNIQUE);
CREATE TABLE audited.carts (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint NOT NULL REFERENCES audited.users,
  product_id int REFERENCES audited.products, picture oid, name text, UNIQUE (user_id, name), UNIQUE (name));
CREATE UNLOGGED TABLE audited.drafts (id uuid PRIMARY KEY, user_id numeric);
CREATE TABLE audited.lines (
  id uuid PRIMARY KEY, user_id int NOT NULL, cart_id bigint REFERENCES audited.carts, bucket int);
CREATE TABLE audited."Odd Name" (id uuid PRIMARY KEY, "User" text NOT NULL);
"""
TABLES = {
    "audited.carts": ("user_id",),
    "audited.drafts": ("user_id",),
    "audited.lines": ("user_id",),
    "audited.nothing": ("user_id",),
}


@pytest.fixture(scope="module")
def url(shards: Shards) -> Iterator[str]:
    with psycopg.connect(shards.urls["shard1"]) as connection:
        connection.execute(SCHEMA)
    yield shards.urls["shard1"]
    with psycopg.connect(shards.urls["shard1"]) as connection:
        connection.execute("DROP SCHEMA audited CASCADE")
        connection.execute("DELETE FROM tenfold.tables WHERE name LIKE 'audited%'")


def test_every_obstacle_is_named_with_a_remedy(url: str) -> None:
    found = {(one.table.removeprefix("audited."), one.problem) for one in audit_tables(url, "shard1", TABLES)}
    assert found == {
        ("carts", "has no column bucket"),
        ("carts", "id counts on each shard by itself"),
        ("carts", "picture may point to a large object"),
        ("carts", "carts_name_key is unique on one shard only"),
        ("carts", "carts_user_id_fkey ties it to audited.users, which is not sharded"),
        ("carts", "carts_product_id_fkey ties it to audited.products, which is not sharded"),
        ("drafts", "is unlogged: it is empty after a crash"),
        ("drafts", "user_id is numeric or may be NULL"),
        ("drafts", "has no column bucket"),
        ("lines", "bucket is not smallint NOT NULL"),
        ("lines", "lacks the trigger tenfold_bucket"),
        ("lines", "lacks the CHECK of its bucket"),
        ("lines", "has no bucket in its replica identity"),
        ("lines", "lines_cart_id_fkey may point to another shard"),
        ("nothing", "does not exist"),
    }
    assert all(one.remedy for one in audit_tables(url, "shard1", TABLES))


def test_table_that_others_point_to_is_named(url: str) -> None:
    problems = {one.problem for one in audit_tables(url, "shard1", {"audited.users": ("id",)})}
    assert "carts_user_id_fkey ties it to audited.carts, which is not sharded" in problems
    assert "users_email_key is unique on one shard only" in problems


def test_tables_of_the_models_have_no_obstacle(shards: Shards) -> None:
    for name, url in shards.urls.items():
        tables = {table: key for table, key in registered_tables(url, name).items() if "." not in table}
        assert tables == {"lines": ("user_id",), "orders": ("user_id",)}
        assert audit_tables(url, name, tables) == []


def test_printed_sql_prepares_a_table_with_rows(url: str) -> None:
    name, key = "audited.Odd Name", ("User",)
    insert_row = """INSERT INTO audited."Odd Name" (id, "User") SELECT gen_random_uuid(), n::text """
    with psycopg.connect(url) as connection:
        connection.execute(insert_row.encode() + b"FROM generate_series(1, 50) n")
        for _ in range(2):  # it can be repeated, but for the constraints
            connection.execute(
                """ALTER TABLE audited."Odd Name" DROP CONSTRAINT IF EXISTS "Odd Name_bucket_key" """
            )
            connection.execute(
                """ALTER TABLE audited."Odd Name" DROP CONSTRAINT IF EXISTS "Odd Name_bucket_of_key" """
            )
            for statement in preparing_statements(name, key, ("id",)):
                connection.execute(statement.encode())
        wrong = 'SELECT count(*) FROM audited."Odd Name" WHERE bucket <> tenfold.bucket(tenfold.key("User"))'
        assert connection.execute(wrong.encode()).fetchone() == (0,)
    with (
        psycopg.connect(url) as connection,
        pytest.raises(psycopg.Error, match=r"does not belong|violates check"),
    ):
        connection.execute(
            """INSERT INTO audited."Odd Name" (id, "User", bucket) VALUES (gen_random_uuid(), 'x', 0)"""
        )
    assert registered_tables(url, "shard1")[name] == key


def test_primary_key_is_read(url: str) -> None:
    assert primary_key(url, "shard1", "lines") == ("order_id", "number")
    with pytest.raises(SettingsError, match="does not exist or has no primary key"):
        primary_key(url, "shard1", "nothing")


def test_database_that_does_not_answer_is_named() -> None:
    with pytest.raises(DirectoryError, match=r"^the database one: "):
        audit_tables("postgresql://u:secret-word@127.0.0.1:1/x", "one", TABLES)


# ------------------------------------------------------------------ declarations


def test_model_without_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="Nothing names no shard key: write __sharded_by__"):

        class Nothing(Sharded, Base):
            __tablename__ = "nothing"
            id: Mapped[int] = mapped_column(primary_key=True)

    Base.metadata.remove(Base.metadata.tables["nothing"])


def test_table_without_column_or_primary_key_is_refused() -> None:
    metadata = MetaData()
    table = Table("one", metadata, Column("id", Integer, primary_key=True), Column("user_id", Integer))
    with pytest.raises(SettingsError, match="table one has no column bucket"):
        shard_table(table, "user_id")
    table = Table("two", metadata, Column("user_id", Integer), bucket_column())
    with pytest.raises(SettingsError, match="table two needs a primary key"):
        shard_table(table, "user_id")
