"""The tables: a row for each task, from its request to its result, for each schedule, and for each worker.

tasks_table(Base.metadata)     # create_all and Alembic's autogenerate make it
create_table(engine)           # without migrations
print(table_sql())             # as text
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement

__all__ = ["create_table", "table_sql", "tasks_table"]


def tasks_table(metadata: MetaData) -> Table:
    """Add the tables to a MetaData; return that of tasks.

    Its ``state`` is ``waiting`` (for ``run_at`` and a relay), ``published`` (to the broker), ``started``, and
    then ``succeeded``, ``failed`` or ``cancelled``.
    """
    now = text("clock_timestamp()")
    table = Table(
        "tenfold_tasks",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("task", Text, nullable=False),
        Column("key", Text),
        Column("queue", Text, nullable=False),
        Column("arguments", Text, nullable=False),
        Column("headers", Text, nullable=False),
        Column("owner", Text),
        Column("state", Text, nullable=False),
        Column("run_at", DateTime(timezone=True), nullable=False, server_default=now),
        Column("attempts", Integer, nullable=False, server_default=text("0")),  # that raised
        Column("starts", Integer, nullable=False, server_default=text("0")),  # without an end
        Column("run", Uuid),  # the start that may store its outcome
        Column("worker", Text),
        Column("epoch", Text),  # of the broker that it was published to
        Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=now),
        Column("published_at", DateTime(timezone=True)),
        Column("started_at", DateTime(timezone=True)),
        Column("heartbeat_at", DateTime(timezone=True)),
        Column("finished_at", DateTime(timezone=True)),
        Column("progress", Double),
        Column("checkpoint", Text),
        Column("result", Text),
        Column("error", Text),
    )
    for name, columns, condition in (
        ("due", ("run_at",), "state = 'waiting'"),
        ("open", ("queue", "published_at"), "state = 'published'"),
        ("running", ("heartbeat_at",), "state = 'started'"),
        ("finished", ("finished_at",), "finished_at IS NOT NULL"),
    ):
        Index(
            f"tenfold_tasks_{name}",
            *(table.c[column] for column in columns),
            postgresql_where=text(condition),
        )
    Table(
        "tenfold_task_schedules",
        metadata,
        Column("name", Text, primary_key=True),
        Column("last_run_at", DateTime(timezone=True), nullable=False),
    )
    Table(
        "tenfold_task_workers",
        metadata,
        Column("name", Text, primary_key=True),
        Column("queues", Text, nullable=False),  # separated by commas
        Column("processes", Integer, nullable=False),
        Column("heartbeat_at", DateTime(timezone=True), nullable=False, server_default=now),
    )
    return table


def create_table(engine: Engine) -> None:
    """Create the tables, unless they are there."""
    metadata = MetaData()
    tasks_table(metadata)
    metadata.create_all(engine)


def table_sql() -> str:
    """The statements that create the tables, for migrations that are written by hand."""
    metadata = MetaData()
    indexes = sorted(tasks_table(metadata).indexes, key=lambda index: index.name or "")
    elements: list[ExecutableDDLElement] = [CreateTable(table) for table in metadata.sorted_tables]
    elements += [CreateIndex(index) for index in indexes]
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return "".join(f"{str(element.compile(dialect=dialect)).strip()};\n" for element in elements)
