"""Statements that would need several shards, found while there is one database: before the second is bought.

report_unrouted(Session, print)  # GET /orders: select on orders without its shard key, at
shop/orders.py:48
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Table, event
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, BindParameter
from sqlalchemy.sql.selectable import Alias, Select

from tenfold.callsites import CallSites
from tenfold.sharding.tables import shard_key

__all__ = ["report_unrouted", "unrouted_tables"]

_log = logging.getLogger("tenfold.sharding")


def report_unrouted(
    session: Any, report: Callable[[str], object] = _log.warning, *, root: Path | None = None
) -> None:
    """Report each place in the code that queries a sharded table without its shard key; once a place.

    Args:
        session: a Session class, sessionmaker or session; of asyncio the ``sync_session_class``.
        report: gets a sentence.
        root: the folder of the service's code; the current one by default.

    SQL as text is not looked into. Lazy and eager loads of relationships are not reported: they follow a row.
    """
    sites = CallSites(root or Path.cwd())
    known: set[tuple[str, str]] = set()

    def look(state: Any) -> None:
        if state.is_relationship_load or state.is_column_load:
            return
        for table in unrouted_tables(state.statement):
            where = sites.find(sys._getframe(1)).where
            if (table, where) not in known and len(known) < 10_000:
                known.add((table, where))
                report(
                    f"a statement on {table} without its shard key would go to every shard: {where or '?'}"
                )

    event.listen(session, "do_orm_execute", look)


def unrouted_tables(statement: Any) -> list[str]:
    """The sharded tables that a statement uses without their shard key, bucket or whole primary key."""
    if not isinstance(statement, Select | UpdateBase) or getattr(statement, "is_insert", False):
        return []
    tables: dict[int, Any] = {}
    fixed: set[tuple[int, str]] = set()
    pairs: list[tuple[Any, Any]] = []
    for element in visitors.iterate(statement):
        original = element.element if isinstance(element, Alias) else element
        if isinstance(original, Table) and shard_key(original):
            tables.setdefault(hash(original), original)
        if isinstance(element, BinaryExpression) and element.operator in (operators.eq, operators.in_op):
            sides = [_column(element.left), _column(element.right)]
            if all(sides):
                pairs.append((sides[0], sides[1]))
            for side, other in ((sides[0], element.right), (sides[1], element.left)):
                if side and isinstance(other, BindParameter):
                    fixed.add(side)
    for _ in pairs:  # equal columns share a value
        for left, right in pairs:
            if left in fixed or right in fixed:
                fixed |= {left, right}

    def is_fixed(table: Table, *names: str) -> bool:
        return all((hash(table), name) in fixed for name in names)

    return [
        table.name
        for table in tables.values()
        if not is_fixed(table, "bucket")
        and not is_fixed(table, *shard_key(table))
        and not is_fixed(table, *(column.name for column in table.primary_key))
    ]


def _column(expression: Any) -> tuple[int, str] | None:
    table = getattr(expression, "table", None)
    table = getattr(table, "element", table) if isinstance(table, Alias) else table
    return (hash(table), expression.name) if isinstance(table, Table) else None
