"""Sharded tables however they are declared: as dataclasses, by SQLModel, as plain tables; and Alembic."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import BigInteger, Column, Engine, MetaData, Table, Text, create_engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column
from sqlalchemy.types import Uuid
from sqlmodel import Field, SQLModel

from tenfold.errors import CrossShardError
from tenfold.sharding import ShardedDatabase, make_uuid, next_id, shard_table
from tenfold.sharding.administration import DirectoryStore, create_shards
from tenfold.sharding.tables import bucket_column, guard_statements
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Base


def engine_of(url: str) -> Engine:
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


@pytest.fixture(scope="module")
def by_text(shards: Shards) -> Iterator[tuple[ShardedDatabase, Engine]]:
    """One shard with keys of text and UUID, in a database of its own."""
    import psycopg

    with psycopg.connect(shards.primary.admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE declared OWNER {shards.primary.user}")
        url = shards.primary.url.rpartition("/")[0] + "/declared"
        store = DirectoryStore(url)
        create_shards(store, {"only": url}, ("text", "uuid"))
        engine = engine_of(url)
        database = ShardedDatabase(store, {"only": engine})
        yield database, engine
        database.close()
        engine.dispose()
        admin.execute("DROP DATABASE declared WITH (FORCE)")


class Dataclasses(MappedAsDataclass, DeclarativeBase):
    pass


class Invoice(Dataclasses):
    __tablename__ = "invoices"
    tenant: Mapped[str] = mapped_column(Text)
    team: Mapped[uuid.UUID]
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, server_default=next_id(), init=False)
    bucket: Mapped[int] = mapped_column(
        default=None, init=False, server_default=text("current_setting('tenfold.bucket')::smallint")
    )


class Note(SQLModel, table=True):
    __tablename__ = "sqlmodel_notes"
    id: uuid.UUID = Field(sa_column=Column(Uuid, primary_key=True))
    tenant: str = Field(sa_column=Column(Text, nullable=False))
    team: uuid.UUID = Field(sa_column=Column(Uuid, nullable=False))
    bucket: int | None = Field(default=None, sa_column=bucket_column())


METADATA = MetaData()
PLAIN = Table(
    "plain things",  # a name that has to be quoted
    METADATA,
    Column("id", BigInteger, primary_key=True, server_default=next_id()),
    Column("Tenant", Text, nullable=False),
    Column("team", Uuid, nullable=False),
    bucket_column(),
)
KEY = ('acme\'s "own" \\ name', uuid.UUID(int=5))


@pytest.fixture(scope="module")
def declared(by_text: tuple[ShardedDatabase, Engine]) -> ShardedDatabase:
    database, engine = by_text
    shard_table(Invoice.__table__, "tenant", "team")  # type: ignore[arg-type]
    shard_table(Note.__table__, "tenant", "team")  # type: ignore[attr-defined]
    shard_table(PLAIN, "Tenant", "team")
    Invoice.metadata.create_all(engine)
    Note.__table__.create(engine)  # type: ignore[attr-defined]
    METADATA.create_all(engine)
    return database


def test_every_kind_of_declaration_is_guarded(declared: ShardedDatabase) -> None:
    tenant, team = KEY
    bucket = declared.bucket_for(KEY)
    note = make_uuid(bucket)
    with declared.session_for(KEY) as session:
        session.add(Invoice(tenant=tenant, team=team))
        session.add(Note(id=note, tenant=tenant, team=team))
        session.execute(insert(PLAIN).values(Tenant=tenant, team=team))
    for rows in (Invoice, Note, PLAIN):
        table: Any = getattr(rows, "__table__", rows)
        assert declared.query_all(select(table.c.bucket)).scalars().all() == [bucket]
    with declared.session_for_id(note, read_only=True) as session:
        assert session.get(Note, note)
    for wrong in (
        Invoice(tenant="other", team=team),
        Note(id=make_uuid(bucket), tenant=tenant, team=uuid.UUID(int=6)),
    ):
        with pytest.raises(CrossShardError), declared.session_for(KEY) as session:
            session.add(wrong)
    with pytest.raises(CrossShardError), declared.session_for(KEY) as session:
        session.execute(insert(PLAIN).values(Tenant="other", team=team))


def test_autogenerate_finds_nothing_to_change(declared: ShardedDatabase, shards: Shards) -> None:
    """The guards are in a schema of their own, in triggers, and in constraints that the models have."""
    with engine_of(shards.urls["shard1"]).connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    ours = {"orders", "lines"}
    assert [change for change in found if any(name in str(change) for name in ours)] == []


def test_guards_are_quoted() -> None:
    statements = "\n".join(guard_statements('a"b', ["c'd"], schema="s;"))
    assert '"s;"."a""b"' in statements and "ARRAY['c''d']" in statements and '''NEW."c'd"''' in statements


def test_tables_can_be_created_again(
    by_text: tuple[ShardedDatabase, Engine], declared: ShardedDatabase
) -> None:
    _, engine = by_text
    for _ in range(2):
        METADATA.drop_all(engine)
        METADATA.create_all(engine)
    with engine.begin() as connection:
        for statement in guard_statements("plain things", ["Tenant", "team"]):
            connection.execute(text(statement.replace(":", "\\:")))
