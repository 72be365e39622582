"""`prepare` of this variant: customers and catalogue into the one database, orders onto their shards."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine, create_engine, make_url, text

from shop import data, rows
from shop.scaled.models import Base
from shop.sharded.models import ShardBase
from tenfold.sharding import DirectoryStore, parse_shard_urls
from tenfold.sharding.directory import Directory

ORDERS = "bucket, id, user_id, status, total_cents, created_at"
ITEMS = "bucket, order_id, product_id, user_id, name, quantity, unit_price_cents"


def load() -> None:
    """Create and fill the tables in the databases that the variables name."""
    data.load(engine_of(os.environ["DATABASE_URL"]), Base.metadata, with_orders=False)
    store = DirectoryStore(os.environ["SHARD_DIRECTORY_URL"])
    orders = distribute(store.load())
    store.close()
    urls = parse_shard_urls(os.environ["SHARD_URLS"])
    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(lambda name: fill(urls[name], *orders[name]), urls))


def fill(url: str, orders: list[str], items: list[str]) -> None:
    """Create and fill one shard. The CHECK looks at each row; the triggers may wait."""
    engine = engine_of(url)
    with engine.begin() as connection:
        ShardBase.metadata.drop_all(connection)
        ShardBase.metadata.create_all(connection)
        for table, columns, lines in (("orders", ORDERS, orders), ("order_items", ITEMS, items)):
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
            data.copy_rows(data.driver_of(connection), table, columns, lines)
            connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM (ANALYZE)")
    engine.dispose()


def engine_of(url: str) -> Engine:
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"))


def distribute(directory: Directory) -> dict[str, tuple[list[str], list[str]]]:
    """The rows of orders and items of each shard, as text for COPY."""
    names = [line.split("\t")[1] for line in rows.products()]
    found: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in directory.shard_epochs}
    owners: dict[str, tuple[int, str, str]] = {}
    for placed, contents in rows.orders():
        for order in placed.splitlines():
            number, user, rest = order.split("\t", 2)
            place = directory.place(int(user))
            owners[number] = place.bucket, place.shard, user
            found[place.shard][0].append(f"{place.bucket}\t{number}\t{user}\t{rest}\n")
        for item in contents.splitlines():
            number, product, quantity, price = item.split("\t")
            bucket, shard, user = owners[number]
            line = f"{bucket}\t{number}\t{product}\t{user}\t{names[int(product) - 1]}\t{quantity}\t{price}\n"
            found[shard][1].append(line)
    return found
