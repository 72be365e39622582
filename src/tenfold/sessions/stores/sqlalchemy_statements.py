"""The statements of a store in a database: two tables, and one clock, which is the database's."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

MOST_MEMBERS = 1000

# Milliseconds since 1970. PostgreSQL's now() is that of the transaction's begin.
_NOW = {
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
}
_INSERT = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class Statements:
    """Each is compiled once and takes its values as parameters.

    Args:
        metadata: where the tables are added.
        table: the name of the first.
        dialect: ``postgresql`` or ``sqlite``.
    """

    def __init__(self, metadata: MetaData, table: str, dialect: str) -> None:
        self._now: Any = literal_column(_NOW[dialect], BigInteger)
        self._insert: Any = _INSERT[dialect]
        self.sessions = Table(
            table,
            metadata,
            Column("handle", String(64), primary_key=True),
            Column("version", BigInteger, nullable=False),  # 0 is a tombstone
            Column("payload", LargeBinary, nullable=False),
            Column("expires_ms", BigInteger, nullable=False),
            Index(f"{table}_expires", "expires_ms"),
        )
        self.groups = Table(
            f"{table}_groups",
            metadata,
            Column("group", String(64), primary_key=True),
            Column("handle", String(64), primary_key=True),
            Column("expires_ms", BigInteger, nullable=False),
            Index(f"{table}_groups_expires", "expires_ms"),
        )
        self._of_sessions()
        self._of_groups()
        self.sweeps = (self._sweep(self.sessions), self._sweep(self.groups))

    def _of_sessions(self) -> None:
        row = self.sessions.c
        until = self._now + bindparam("ttl_ms", type_=BigInteger)
        live = row.expires_ms > self._now
        self.read = select(row.handle, row.version, row.payload).where(
            row.handle.in_(bindparam("handles", expanding=True)), live, row.version > 0
        )
        new = self._insert(self.sessions).values(
            handle=bindparam("handle"), payload=bindparam("payload"), expires_ms=until
        )
        kept = ("version", "payload", "expires_ms")
        create, revoke = new.values(version=1), new.values(version=0)
        self.create = create.on_conflict_do_update(
            index_elements=[row.handle],
            set_={name: create.excluded[name] for name in kept},
            where=row.expires_ms <= self._now,
        ).returning(row.version)
        self.revoke = revoke.on_conflict_do_update(
            index_elements=[row.handle], set_={name: revoke.excluded[name] for name in kept}
        )
        self.replace = (
            update(self.sessions)
            .where(
                row.handle == bindparam("name"), row.version == bindparam("expected"), live, row.version > 0
            )
            .values(version=row.version + 1, payload=bindparam("payload"), expires_ms=until)
            .returning(row.version)
        )

    def _of_groups(self) -> None:
        row = self.groups.c
        ours = select(row.handle).where(row.group == bindparam("name"))
        present = ours.where(row.handle == bindparam("handle")).exists()
        size = select(func.count()).where(row.group == bindparam("name")).scalar_subquery()
        new = self._insert(self.groups).from_select(
            ["group", "handle", "expires_ms"],
            select(
                bindparam("group", type_=String),
                bindparam("handle", type_=String),
                self._now + bindparam("ttl_ms", type_=BigInteger),
            ).where(present | (size < MOST_MEMBERS)),
        )
        later = case(
            (row.expires_ms > new.excluded.expires_ms, row.expires_ms), else_=new.excluded.expires_ms
        )
        self.enlist = new.on_conflict_do_update(
            index_elements=[row.group, row.handle], set_={"expires_ms": later}
        ).returning(row.handle)
        latest = ours.order_by(row.expires_ms.desc(), row.handle.desc())
        self.members = latest.where(row.expires_ms > self._now).limit(MOST_MEMBERS)
        self.first = ours.order_by(row.expires_ms, row.handle).limit(1)
        over = ours.where(row.expires_ms <= self._now).with_for_update(skip_locked=True)
        self.trim = delete(self.groups).where(
            row.group == bindparam("name"),
            row.handle.in_(bindparam("handles", expanding=True)) | row.handle.in_(over),
        )

    def _sweep(self, table: Table) -> Any:
        """A bounded number of rows, each locked first, so that two who sweep do not wait for each other."""
        row, key = table.c, list(table.primary_key.columns)
        over = (
            select(*key)
            .where(row.expires_ms <= self._now)
            .order_by(row.expires_ms)
            .limit(bindparam("batch"))
            .with_for_update(skip_locked=True)
        )
        return delete(table).where(tuple_(*key).in_(over), row.expires_ms <= self._now).returning(key[0])
