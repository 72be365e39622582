"""Sharded tables: a bucket in each row, and what the shard itself refuses.

    class Order(Sharded, Base):
        __tablename__ = "orders"
        __sharded_by__ = "user_id"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True, server_default=next_id())
        user_id: Mapped[int] = mapped_column(BigInteger)

The bucket comes from the transaction (``tenfold.bucket``, set by the session's first statement), a CHECK
holds it against the key, and triggers refuse a row of a bucket that is not here, of another key than the
session's, and an UPDATE that changes the bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tenfold.errors import DependencyError, SettingsError

try:
    from sqlalchemy import (
        DDL,
        CheckConstraint,
        Column,
        SmallInteger,
        Table,
        TextClause,
        UniqueConstraint,
        event,
        text,
    )
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.orm import Mapped, mapped_column
except ImportError as error:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[database]'") from error

__all__ = [
    "Sharded",
    "bucket_column",
    "check_expression",
    "guard_statements",
    "next_id",
    "quote",
    "shard_key",
    "shard_table",
]

_INFO = "tenfold_shard_key"
_DEFAULT = "current_setting('tenfold.bucket')::smallint"


def next_id() -> TextClause:
    """The default of a BIGINT primary key: an identifier with the bucket in it, made by the shard."""
    return text("tenfold.next_id()")


def bucket_column() -> Column[int]:
    """The column ``bucket`` of a Table without a mapped class; pass the Table to :func:`shard_table`."""
    return Column("bucket", SmallInteger, nullable=False, server_default=text(_DEFAULT))


class Sharded:
    """A mixin for mapped classes, before the declarative base; ``__sharded_by__`` names the key's columns.

    For classes that are dataclasses, and for plain tables, use :func:`bucket_column` and :func:`shard_table`.
    """

    __sharded_by__: ClassVar[str | tuple[str, ...]]

    bucket: Mapped[int] = mapped_column(
        SmallInteger, nullable=False, server_default=text(_DEFAULT), sort_order=999
    )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)  # which maps the class
        if isinstance(table := cls.__dict__.get("__table__"), Table):
            key = getattr(cls, "__sharded_by__", None)
            if key is None:
                raise SettingsError(f'{cls.__name__} names no shard key: write __sharded_by__ = "user_id"')
            shard_table(table, *([key] if isinstance(key, str) else key))


def shard_table(table: Table, *key: str) -> Table:
    """Shard a table that has a column ``bucket`` by the columns ``key``; returns it.

    Its CHECK and UNIQUE constraint are created with it, and behind them what :func:`guard_statements` says.

    Raises:
        SettingsError: a column is missing, or the table has no primary key.
    """
    names = [*key, "bucket"]
    if missing := [name for name in names if name not in table.c]:
        raise SettingsError(f"table {table.name} has no column {missing[0]}: a sharded table needs it")
    primary = [column.name for column in table.primary_key]
    if not primary or not key:
        raise SettingsError(f"table {table.name} needs a primary key and a shard key to be sharded")
    table.info[_INFO] = key
    table.append_constraint(CheckConstraint(check_expression(key), name=f"{table.name}_bucket_of_key"))
    if "bucket" not in primary:
        unique = [table.c[name] for name in ("bucket", *primary)]
        table.append_constraint(UniqueConstraint(*unique, name=f"{table.name}_bucket_key"))
    make_ddl: Any = DDL
    has_unique = "bucket" not in primary
    for statement in guard_statements(table.name, key, schema=table.schema, identity=has_unique):
        ddl = make_ddl(statement.replace("%", "%%"))
        event.listen(table, "after_create", ddl.execute_if(dialect="postgresql"))
    return table


def shard_key(table: object) -> tuple[str, ...]:
    """The columns of the shard key of a Table; () if it is not sharded."""
    found: tuple[str, ...] = getattr(table, "info", {}).get(_INFO, ())
    return found


def quote(name: str) -> str:
    """Write a name as PostgreSQL reads it."""
    return str(postgresql.dialect().identifier_preparer.quote(name))  # type: ignore[no-untyped-call]


def _key_text(key: Sequence[str], row: str = "") -> str:
    return " || ".join(f"tenfold.key({row}{quote(name)})" for name in key)


def check_expression(key: Sequence[str]) -> str:
    """The CHECK of a sharded table: its bucket is that of its key."""
    # "&" has no precedence of its own in PostgreSQL: hence the brackets.
    return f"(bucket & 4095) = tenfold.bucket({_key_text(key)})"


def guard_statements(
    table: str, key: Sequence[str], *, schema: str | None = None, identity: bool = True
) -> tuple[str, ...]:
    """The triggers of a sharded table, and its line in ``tenfold.tables``: for an Alembic migration.

    Each can be repeated.

    Args:
        identity: make UNIQUE (bucket, …) what replication knows a row by, so that one bucket can be followed;
            False for a table whose primary key has the bucket in it.
    """
    name = f"{quote(schema)}.{quote(table)}" if schema else quote(table)
    registered = f"{schema}.{table}" if schema else table
    key_list = ", ".join(_literal(column) for column in key)
    other = _literal("a row of another key than the session's: write it in a session of its own key")
    moved = _literal("an UPDATE may not change a row's bucket: insert it anew under its other key")
    own = "coalesce(nullif(current_setting('tenfold.key', true), ''), {0}) <> {0}"
    replica_identity = f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX {quote(f'{table}_bucket_key')}"
    return (
        *([replica_identity] if identity else []),
        f"CREATE OR REPLACE TRIGGER tenfold_bucket BEFORE INSERT ON {name} FOR EACH ROW "
        "EXECUTE FUNCTION tenfold.check_bucket()",
        f"CREATE OR REPLACE TRIGGER tenfold_key BEFORE INSERT OR UPDATE ON {name} FOR EACH ROW "
        f"WHEN ({own.format(_key_text(key, 'NEW.'))}) EXECUTE FUNCTION tenfold.refuse_row({other})",
        f"CREATE OR REPLACE TRIGGER tenfold_delete BEFORE DELETE ON {name} FOR EACH ROW "
        f"WHEN ({own.format(_key_text(key, 'OLD.'))}) EXECUTE FUNCTION tenfold.refuse_row({other})",
        f"CREATE OR REPLACE TRIGGER tenfold_move BEFORE UPDATE ON {name} FOR EACH ROW "
        f"WHEN (OLD.bucket <> NEW.bucket) EXECUTE FUNCTION tenfold.refuse_row({moved})",
        f"INSERT INTO tenfold.tables VALUES ({_literal(registered)}, ARRAY[{key_list}]) "  # noqa: S608
        "ON CONFLICT (name) DO UPDATE SET key = excluded.key",
    )


def _literal(text_: str) -> str:
    return "'" + text_.replace("'", "''") + "'"
