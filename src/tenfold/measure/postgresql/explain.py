"""Query plans of the costliest statements from PostgreSQL, and the indexes that they lack.

``EXPLAIN (GENERIC_PLAN)``, PostgreSQL 16 and newer, needs no parameters: no user's data are kept, sent or
shown. It does not run the statement; everything happens in a read-only transaction with a timeout.

With ``may_create_index`` a missing index is *proven*: one row's value is looked up by the column, inside the
database, before and after ``CREATE INDEX CONCURRENTLY``; then the index is dropped again. Use it only for
data that are thrown away afterwards: on a large table it takes long and loads the database.
"""

from __future__ import annotations

import hashlib
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tenfold.errors import DependencyError, MeasurementError
from tenfold.measure.optional_steps import OptionalSteps, failure_reason
from tenfold.measure.postgresql.plans import MAX_SHARE, MIN_TABLE_ROWS, Scan, outline, scans

if TYPE_CHECKING:
    import psycopg

    from tenfold.measure.probe.evidence import StatementStats

STATEMENTS = 20
PROOFS = 3  # indexes created for proof, at most
PROOF_INDEX = "tenfold_proof_"
LOOKUPS = 3  # look-ups timed before and after an index is created; their median counts

_PLACEHOLDER = re.compile(r"%\(\w+\)s|%s|%%")
_FINGERPRINT_PLACEHOLDER = re.compile(r"\(\?\+\)|\?")
_EXPLAINABLE = re.compile(r"\s*(SELECT|WITH|UPDATE|DELETE)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class IndexProof:
    """The effect of an index. Times are the median of three runs in the database."""

    before_ms: float
    after_ms: float
    cost_before: float  # of the whole statement, as the planner estimates it
    cost_after: float

    @property
    def helps(self) -> bool:
        """True if the look-up is at least twice as fast and the planner uses the index for the statement."""
        return self.after_ms * 2 <= self.before_ms and self.cost_after < self.cost_before


@dataclass(frozen=True, slots=True)
class MissingIndex:
    """A column by which rows are looked up, or columns by which they are sorted, without an index."""

    table: str  # "orders", "sales.orders" outside of public
    column: str  # "user_id"; "created_at DESC, id" for an ORDER BY
    table_rows: int
    rows: float  # that the statement needs, as the planner estimates
    create: str  # the CREATE INDEX statement
    ordered: bool = False  # for an ORDER BY with a LIMIT
    proof: IndexProof | None = None
    unproven: str = ""  # why its proof failed; empty when it was not tried or did not fail


@dataclass(frozen=True, slots=True)
class Plan:
    """The query plan of one statement."""

    fingerprint: str
    cost: float = 0.0
    lines: tuple[str, ...] = ()
    missing: tuple[MissingIndex, ...] = ()
    reason: str = ""  # why there is no plan; empty when there is one


def explain(
    url: str,
    statements: Iterable[StatementStats],
    *,
    texts: Mapping[str, str] | None = None,
    may_create_index: bool = False,
    timeout_s: float = 5.0,
) -> tuple[Plan, ...]:
    """Return the plans of the costliest statements, at most twenty.

    Args:
        url: the database, with a role that may read its tables (``postgresql://…``).
        statements: the recorded statements, the costliest first.
        texts: fingerprint → text as the driver got it (``Collector.sql_examples()``). Without it the plan is
            made from the fingerprint, which fails for some statements; those have a ``reason``.
        may_create_index: prove missing indexes; see the module's description.
        timeout_s: timeout of one statement; creating an index may take ten times as long.

    Raises:
        MeasurementError: the database cannot be reached.
        DependencyError: psycopg is not installed.
    """
    costliest = list(dict.fromkeys(use.fingerprint for use in statements))
    wanted = [text for text in costliest if _EXPLAINABLE.match(text)][:STATEMENTS]
    if not wanted:
        return ()
    with _connection(url, timeout_s) as connection:
        sql_of = {text: _explainable_sql(text, (texts or {}).get(text)) for text in wanted}
        plans = [_plan(connection, text, sql) for text, sql in sql_of.items()]
        if may_create_index:
            plans = _prove_indexes(connection, plans, sql_of, timeout_s)
    return tuple(plans)


def positional(sql: str, placeholder: re.Pattern[str] = _PLACEHOLDER) -> str:
    """Return the statement with ``$1``, ``$2`` … for every placeholder of psycopg.

    >>> positional("SELECT %(a)s, 5 %% 2, %(a)s")
    'SELECT $1, 5 % 2, $1'
    """
    numbers: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        text = found.group()
        if text == "%%":
            return "%"
        name = text if text.startswith("%(") else f"{found.start()}"
        position = numbers.setdefault(name, len(numbers) + 1)
        return f"(${position})" if text == "(?+)" else f"${position}"

    return placeholder.sub(number, sql)


def _explainable_sql(fingerprint: str, text: str | None) -> str:
    sql = positional(fingerprint, _FINGERPRINT_PLACEHOLDER) if text is None else positional(text)
    return sql.strip().rstrip(";")


@contextmanager
def _connection(url: str, timeout_s: float) -> Iterator[psycopg.Connection[Any]]:
    try:
        import psycopg
    except ImportError as error:
        raise DependencyError("psycopg is not installed; install tenfold[database]") from error
    try:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=max(2, round(timeout_s)))
    except psycopg.Error as error:
        raise MeasurementError(f"EXPLAIN cannot connect to the database ({_first_line(error)})") from error
    with connection:
        _execute(connection, f"SET statement_timeout = {round(timeout_s * 1000)}")
        _execute(connection, "SET lock_timeout = 1000")
        yield connection


def _plan(connection: psycopg.Connection[Any], fingerprint: str, sql: str) -> Plan:
    import psycopg

    if ";" in sql:  # the simple protocol would run what comes after it
        return Plan(fingerprint, reason="it contains a semicolon, and only single statements are explained")
    try:
        tree = _explain(connection, sql)
        missing = tuple(
            found for scan in scans(tree) if (found := _missing_index(connection, scan)) is not None
        )
        lines = tuple(outline(tree))
    except psycopg.Error as error:
        return Plan(fingerprint, reason=_reason(error))
    except Exception as error:  # a node that this module does not know: the other plans are still read
        return Plan(fingerprint, reason=failure_reason(error))
    return Plan(fingerprint, float(tree["Total Cost"]), lines, tuple(dict.fromkeys(missing)))


def _explain(connection: psycopg.Connection[Any], sql: str) -> dict[str, Any]:
    _execute(connection, "BEGIN READ ONLY")
    try:
        row = _execute(connection, f"EXPLAIN (GENERIC_PLAN, VERBOSE, FORMAT JSON) {sql}").fetchone()
    finally:
        _execute(connection, "ROLLBACK")
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


# The most selective of the columns, if no index of the table begins with any of them, and the table's size.
_UNINDEXED_COLUMN = """
    SELECT c.reltuples::float8, a.attname
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = ANY (%(columns)s)
    LEFT JOIN pg_stats s ON (s.schemaname, s.tablename, s.attname) = (%(schema)s, %(table)s, a.attname)
    WHERE c.oid = format('%%I.%%I', %(schema)s::text, %(table)s::text)::regclass AND NOT EXISTS (
        SELECT 1 FROM pg_index i
        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indkey[0] = ANY (
            SELECT attnum FROM pg_attribute WHERE attrelid = c.oid AND attname = ANY (%(columns)s)))
    ORDER BY CASE WHEN s.n_distinct < 0 THEN -s.n_distinct * c.reltuples ELSE s.n_distinct END DESC NULLS LAST
    LIMIT 1
"""


def _missing_index(connection: psycopg.Connection[Any], scan: Scan) -> MissingIndex | None:
    """Return the index that the scan lacks; None for a small table, many rows, or an existing index."""
    columns = scan.columns[:1] if scan.order else scan.columns
    names = {"schema": scan.schema, "table": scan.table, "columns": list(columns)}
    row = connection.execute(_UNINDEXED_COLUMN, names).fetchone()
    if row is None or row[0] < MIN_TABLE_ROWS or scan.rows >= MAX_SHARE * row[0]:
        return None
    column = _quote(row[1])
    if scan.order:
        pairs = zip(scan.columns, scan.order, strict=True)
        column = ", ".join(f"{_quote(name)} {order}".strip() for name, order in pairs)
    table = _quote(scan.table) if scan.schema == "public" else f"{_quote(scan.schema)}.{_quote(scan.table)}"
    create = f"CREATE INDEX CONCURRENTLY ON {table} ({column})"
    return MissingIndex(table, column, int(row[0]), scan.rows, create, bool(scan.order))


def _prove_indexes(
    connection: psycopg.Connection[Any], plans: list[Plan], sql_of: Mapping[str, str], timeout_s: float
) -> list[Plan]:
    """Prove the missing indexes, the first three that differ; return the plans with the proofs."""
    steps = OptionalSteps()
    steps.run("leftovers", lambda: _drop_leftovers(connection), otherwise=None)
    proofs: dict[str, IndexProof | str] = {}
    for plan in plans:
        for missing in plan.missing:
            if missing.create not in proofs and len(proofs) < PROOFS:
                sql = sql_of[plan.fingerprint]
                proofs[missing.create] = _prove_index(connection, missing, sql, plan.cost, timeout_s)
    return [
        replace(plan, missing=tuple(_with_proof(one, proofs.get(one.create)) for one in plan.missing))
        for plan in plans
    ]


def _with_proof(missing: MissingIndex, proof: IndexProof | str | None) -> MissingIndex:
    return replace(missing, unproven=proof) if isinstance(proof, str) else replace(missing, proof=proof)


def _drop_leftovers(connection: psycopg.Connection[Any]) -> None:
    """Drop the indexes of a proof that was killed halfway."""
    names = connection.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'i' AND starts_with(relname, %s)",
        (PROOF_INDEX,),
    )
    for (name,) in names.fetchall():
        _execute(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


def _prove_index(
    connection: psycopg.Connection[Any], missing: MissingIndex, sql: str, cost: float, timeout_s: float
) -> IndexProof | str:
    """Create the index, time it, drop it; return the reason when that fails."""
    import psycopg

    index = PROOF_INDEX + hashlib.sha256(missing.create.encode()).hexdigest()[:12]
    try:
        before = _time_lookup_ms(connection, missing)
        try:
            _execute(connection, f"SET statement_timeout = {round(timeout_s * 10_000)}")
            _execute(connection, missing.create.replace(" ON ", f" {index} ON ", 1))
            return IndexProof(
                before,
                _time_lookup_ms(connection, missing),
                cost,
                float(_explain(connection, sql)["Total Cost"]),
            )
        finally:
            # A failed CREATE INDEX CONCURRENTLY leaves an invalid index behind, which this drops as well.
            schema = f"{missing.table.rsplit('.', 1)[0]}." if "." in missing.table else ""
            _execute(connection, f"DROP INDEX CONCURRENTLY IF EXISTS {schema}{index}")
            _execute(connection, f"SET statement_timeout = {round(timeout_s * 1000)}")
    except psycopg.Error as error:
        return _reason(error)
    except Exception as error:
        return failure_reason(error)


def _time_lookup_ms(connection: psycopg.Connection[Any], missing: MissingIndex) -> float:
    """Time the look-up of one value's rows, or of the first page; the value does not leave the database."""
    table, column = missing.table, missing.column  # quoted
    if missing.ordered:
        sql = f"SELECT 1 FROM {table} ORDER BY {column} LIMIT 20"  # noqa: S608
    else:
        value = f"(SELECT {column} FROM {table} WHERE {column} IS NOT NULL LIMIT 1)"  # noqa: S608
        sql = f"SELECT count(*) FROM {table} WHERE {column} = {value}"  # noqa: S608
    times = []
    for _ in range(LOOKUPS):
        row = _execute(connection, f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {sql}").fetchone()
        assert row is not None
        times.append(float(row[0][0]["Execution Time"]))
    return statistics.median(times)


def _execute(connection: psycopg.Connection[Any], sql: str) -> psycopg.Cursor[Any]:
    # Statements are the app's own, or built from the database's own names; without parameters psycopg leaves
    # a % alone.
    return connection.execute(sql)


def _quote(name: str) -> str:
    plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name) is not None
    return name if plain and name not in _RESERVED else '"' + name.replace('"', '""') + '"'


# Reserved words that are used as names of tables and columns.
_RESERVED = frozenset(
    ["user", "order", "group", "table", "column", "check", "default", "desc", "end", "from", "limit",
     "offset", "primary", "references", "select", "to", "when", "where", "grant", "analyse", "analyze"]
)  # fmt: skip


def _reason(error: psycopg.Error) -> str:
    state = error.sqlstate or ""
    # Class 22: PostgreSQL repeats the value, which may be a user's when the app writes it into its SQL.
    return f"a value in its text is invalid ({state})" if state.startswith("22") else _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
