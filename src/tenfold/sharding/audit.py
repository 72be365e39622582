"""What keeps a table from being sharded as it is, by PostgreSQL's catalogs, and the SQL that prepares it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tenfold.errors import SettingsError
from tenfold.sharding.administration import connect
from tenfold.sharding.tables import check_expression, guard_statements, quote

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "Problem",
    "audit_tables",
    "count_rows",
    "preparing_statements",
    "primary_key",
    "registered_tables",
]

_KEY_TYPES = ("int2", "int4", "int8", "text", "varchar", "uuid")
_GUARDS = ("tenfold_bucket", "tenfold_delete", "tenfold_key", "tenfold_move")

_TABLE = (
    "SELECT relpersistence, oid::bigint, relreplident FROM pg_class "
    "WHERE oid = to_regclass(%s) AND relkind IN ('r', 'p')"
)
_COLUMNS = """
SELECT a.attname, t.typname, a.attnotnull, a.attidentity, coalesce(pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
"""
_INDEXES = """
SELECT c.relname, i.indisprimary, array(SELECT a.attname FROM unnest(i.indkey::int2[]) k
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k)::text[]
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = %s AND (i.indisunique OR i.indisexclusion)
"""
_FOREIGN_KEYS = """
SELECT c.conname, c.conrelid::regclass::text, c.confrelid::regclass::text,
  array(SELECT a.attname FROM unnest(c.conkey) k JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum
  = k)::text[]
FROM pg_constraint c WHERE c.contype = 'f' AND (c.conrelid = %(oid)s OR c.confrelid = %(oid)s)
"""


class Problem(NamedTuple):
    """Why a table cannot be sharded as it is, and what to do about it."""

    table: str
    problem: str
    remedy: str


def registered_tables(url: str, name: str) -> dict[str, tuple[str, ...]]:
    """The sharded tables of a shard and their keys."""
    with connect(url, what=f"shard {name}") as connection:
        if not connection.execute("SELECT to_regclass('tenfold.tables') IS NOT NULL").fetchall()[0][0]:
            return {}
        rows = connection.execute("SELECT name, key FROM tenfold.tables ORDER BY name").fetchall()
        return {table: tuple(key) for table, key in rows}


def audit_tables(url: str, name: str, tables: Mapping[str, Sequence[str]]) -> list[Problem]:
    """Look at tables that are to be sharded by these columns, in one database.

    Raises:
        DirectoryError: the database does not answer.
    """
    with connect(url, what=f"the database {name}") as connection:
        return [one for table in tables for one in _audit(connection, table, tuple(tables[table]), tables)]


def _audit(
    connection: psycopg.Connection[Any], table: str, key: tuple[str, ...], tables: Mapping[str, Sequence[str]]
) -> Iterator[Problem]:
    found = connection.execute(_TABLE, (table,)).fetchone()
    if found is None:
        yield Problem(table, "does not exist", "create it, or correct its name")
        return
    persistence, oid, identity = found
    if persistence == "u":
        yield Problem(table, "is unlogged: it is empty after a crash", f"ALTER TABLE {table} SET LOGGED")
    rows = connection.execute(_COLUMNS, (oid,)).fetchall()
    columns = {row[0]: row[1:] for row in rows}
    yield from _audit_columns(table, key, columns)
    indexes = connection.execute(_INDEXES, (oid,)).fetchall()
    for index, is_primary, names in indexes:
        if not is_primary and "bucket" not in names and not set(key) <= set(names):
            yield Problem(
                table,
                f"{index} is unique on one shard only",
                f"add bucket or {', '.join(key)} to it, or keep what is to be unique beside the shards",
            )
    yield from _audit_foreign_keys(connection, table, oid, tables)
    triggers = connection.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = %s", (oid,)).fetchall()
    if "bucket" in columns and (missing := set(_GUARDS) - {one[0] for one in triggers}):
        yield Problem(
            table, f"lacks the trigger {min(missing)}", "run what tenfold shards check --sql prints"
        )
    checks = connection.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s AND contype = 'c'", (oid,)
    ).fetchall()
    in_primary_key = any(is_primary and "bucket" in names for _, is_primary, names in indexes)
    if "bucket" in columns and identity not in ("i", "f") and not in_primary_key:
        yield Problem(
            table, "has no bucket in its replica identity", "run what tenfold shards check --sql prints"
        )
    if "bucket" in columns and not any("tenfold.bucket(" in one[0] for one in checks):
        yield Problem(table, "lacks the CHECK of its bucket", "run what tenfold shards check --sql prints")


def _audit_columns(
    table: str, key: Sequence[str], columns: Mapping[str, tuple[str, bool, str, str]]
) -> Iterator[Problem]:
    for name in key:
        if name not in columns:
            yield Problem(table, f"has no column {name}", "add it: every row has to know its shard key")
        elif columns[name][0] not in _KEY_TYPES or not columns[name][1]:
            yield Problem(
                table,
                f"{name} is {columns[name][0]} or may be NULL",
                "a key is int, text or uuid, and NOT NULL",
            )
    if "bucket" not in columns:
        yield Problem(table, "has no column bucket", "run what tenfold shards check --sql prints")
    elif columns["bucket"][:2] != ("int2", True):
        yield Problem(table, "bucket is not smallint NOT NULL", "run what tenfold shards check --sql prints")
    for name, (kind, _, identity, default) in columns.items():
        if identity or "nextval(" in default:
            yield Problem(
                table,
                f"{name} counts on each shard by itself",
                "DEFAULT tenfold.next_id() on a bigint, or UUIDs",
            )
        if kind in ("oid", "lo"):
            yield Problem(
                table, f"{name} may point to a large object", "store it as bytea, or in an object store"
            )


def _audit_foreign_keys(
    connection: psycopg.Connection[Any], table: str, oid: int, tables: Mapping[str, Sequence[str]]
) -> Iterator[Problem]:
    for constraint, source, target, names in connection.execute(_FOREIGN_KEYS, {"oid": oid}).fetchall():
        other = target if source == table else source
        if other not in tables and other.removeprefix("public.") not in tables:
            yield Problem(
                table,
                f"{constraint} ties it to {other}, which is not sharded",
                "drop it, and keep what the rows need of the other table in them",
            )
        elif source == table and "bucket" not in names:
            yield Problem(
                table,
                f"{constraint} may point to another shard",
                f"add bucket: REFERENCES {target} (bucket, …)",
            )


def preparing_statements(table: str, key: Sequence[str], primary_key: Sequence[str]) -> list[str]:
    """The SQL that makes an existing table a sharded one; it rewrites the whole table."""
    schema, _, plain = table.rpartition(".")
    name = ".".join(quote(part) for part in table.split("."))
    bucket = check_expression(key).partition(" = ")[2]
    columns = ", ".join(quote(column) for column in ("bucket", *primary_key))
    return [
        f"ALTER TABLE {name} ADD COLUMN IF NOT EXISTS bucket smallint",
        f"UPDATE {name} SET bucket = {bucket} WHERE bucket IS NULL",  # noqa: S608 - quoted, and only printed
        f"ALTER TABLE {name} ALTER COLUMN bucket SET NOT NULL, "
        "ALTER COLUMN bucket SET DEFAULT current_setting('tenfold.bucket')::smallint",
        f"ALTER TABLE {name} ADD CONSTRAINT {quote(plain + '_bucket_of_key')} "
        f"CHECK ({check_expression(key)})",
        f"ALTER TABLE {name} ADD CONSTRAINT {quote(plain + '_bucket_key')} UNIQUE ({columns})",
        *guard_statements(plain, key, schema=schema or None),
    ]


def primary_key(url: str, name: str, table: str) -> tuple[str, ...]:
    """The columns of a table's primary key."""
    with connect(url, what=f"the database {name}") as connection:
        found = connection.execute(_TABLE, (table,)).fetchone()
        indexes = connection.execute(_INDEXES, (found[1],)).fetchall() if found else ()
    columns = next((names for _, is_primary, names in indexes if is_primary), None)
    if not columns:
        raise SettingsError(
            f"table {table[:60]} does not exist or has no primary key: a sharded table needs one"
        )
    return tuple(columns)


def count_rows(url: str, name: str) -> dict[int, int]:
    """The rows of all sharded tables of a shard by their bucket; reads every row."""
    from psycopg import sql

    counts: dict[int, int] = {}
    with connect(url, what=f"shard {name}") as connection:
        for (table,) in connection.execute("SELECT name FROM tenfold.tables").fetchall():
            query = sql.SQL("SELECT bucket, count(*) FROM {} GROUP BY bucket")
            for bucket, count in connection.execute(
                query.format(sql.Identifier(*table.split(".")))
            ).fetchall():
                counts[bucket] = counts.get(bucket, 0) + count
    return counts
