"""Fills a database with the shop's data. A variant defines the tables, with the columns of `shop.rows`."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine, ForeignKeyConstraint, MetaData
from sqlalchemy.schema import AddConstraint, CreateIndex, CreateTable

from shop import rows

_USERS = "id, email, name, password_hash, created_at"
_PRODUCTS = "id, name, description, category, price_cents, stock, created_at"
_ORDERS = "id, user_id, status, total_cents, created_at"
_ITEMS = "order_id, product_id, quantity, unit_price_cents"


def load(engine: Engine, metadata: MetaData, *, with_orders: bool = True) -> None:
    """Drop the tables of ``metadata``, create them again and fill them, all or nothing.

    Tables first, then rows, then indexes and foreign keys: a new foreign key is checked for all rows with one
    join, an existing one with a lookup for each row. Rows are frozen and analysed, so that a vacuum during a
    measurement only finds new rows.

    Raises sqlalchemy.exc.DBAPIError and psycopg.Error when the database refuses.
    """
    with engine.begin() as connection:
        metadata.drop_all(connection)
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, include_foreign_key_constraints=[]))
        _fill(driver_of(connection), with_orders=with_orders)
        _constrain(connection, metadata)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM (ANALYZE)")


def driver_of(connection: Connection) -> psycopg.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection), "the shop speaks to PostgreSQL through psycopg 3"
    return driver


def _fill(connection: psycopg.Connection, *, with_orders: bool) -> None:
    copy_rows(connection, "users", _USERS, rows.users())
    copy_rows(connection, "products", _PRODUCTS, rows.products())
    if with_orders:
        _fill_orders(connection)
    for table in ("users", "products", "orders"):
        connection.execute(
            sql.SQL("SELECT setval(pg_get_serial_sequence({}, 'id'), max(id)) FROM {}").format(
                table, sql.Identifier(table)
            )
        )


def _fill_orders(connection: psycopg.Connection) -> None:
    # Two tables from one pass over the orders: the items wait in memory (10 MB), the orders stream.
    items: list[str] = []
    with connection.cursor().copy(_statement("orders", _ORDERS)) as copy:
        for placed, contents in rows.orders():
            copy.write(placed)
            items.append(contents)
    copy_rows(connection, "order_items", _ITEMS, items)


def copy_rows(connection: psycopg.Connection, table: str, columns: str, lines: Iterable[str]) -> None:
    with connection.cursor().copy(_statement(table, columns)) as copy:
        for line in lines:
            copy.write(line)


def _statement(table: str, columns: str) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN (FREEZE)").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns.split(", ")))
    )


def _constrain(connection: Connection, metadata: MetaData) -> None:
    for table in metadata.sorted_tables:
        for index in table.indexes:
            connection.execute(CreateIndex(index))
        for constraint in table.constraints:
            if isinstance(constraint, ForeignKeyConstraint):
                connection.execute(AddConstraint(constraint, isolate_from_table=False))
