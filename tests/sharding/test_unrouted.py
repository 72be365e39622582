"""Statements without their shard key, found while there is one database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, func, insert, select, text, update
from sqlalchemy.orm import Session, aliased, selectinload, sessionmaker

from tenfold.sharding.unrouted import report_unrouted, unrouted_tables
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Line, Order, PlainOrder

OTHER = aliased(Line)

STATEMENTS: list[tuple[Any, list[str]]] = [
    (select(Order), ["orders"]),
    (select(Order).where(Order.total > 3), ["orders"]),
    (select(Order).where(Order.user_id > 3), ["orders"]),
    (select(Order).where(Order.user_id == 3), []),
    (select(Order).where(Order.user_id.in_([3])), []),
    (select(Order).where(Order.bucket == 3), []),
    (select(Order).where(Order.id == 3), []),
    (select(Line).where(Line.order_id == 3), ["lines"]),
    (select(Line).where(Line.order_id == 3, Line.number == 1), []),
    (select(Order).join(Order.lines).where(Order.user_id == 3), []),
    (select(Order).join(Line, Line.order_id == Order.id).where(Order.user_id == 3), ["lines"]),
    (select(Order).join(OTHER, OTHER.user_id == Order.user_id).where(OTHER.user_id == 3), []),
    (select(func.count()).select_from(Order), ["orders"]),
    (update(Order).values(total=1), ["orders"]),
    (update(Order).where(Order.user_id == 1).values(total=1), []),
    (delete(Order), ["orders"]),
    (insert(Order).values(user_id=1), []),
    (select(PlainOrder), []),
    (text("SELECT * FROM orders"), []),
]


@pytest.mark.parametrize(("statement", "tables"), STATEMENTS, ids=lambda one: str(one)[:60])
def test_statement_without_its_shard_key_is_found(statement: Any, tables: list[str]) -> None:
    assert unrouted_tables(statement) == tables


def test_places_are_reported_once(shards: Shards) -> None:
    said: list[str] = []
    engine = create_engine(shards.urls["shard1"].replace("postgresql:", "postgresql+psycopg:"))
    maker = sessionmaker(engine)
    report_unrouted(maker, said.append, root=Path(__file__).parents[2])

    def all_orders(session: Session) -> None:
        session.scalars(select(Order).options(selectinload(Order.lines)).limit(2)).all()

    with maker() as session:
        for _ in range(3):
            all_orders(session)
        session.scalars(select(Order).where(Order.user_id == 1)).all()
    engine.dispose()
    line = all_orders.__code__.co_firstlineno + 1
    assert said == [
        "a statement on orders without its shard key would go to every shard: "
        f"tests/sharding/test_unrouted.py:{line}"
    ]
