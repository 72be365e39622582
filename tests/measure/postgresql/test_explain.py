"""Query plans of a real PostgreSQL: missing indexes are found with their columns, and only these."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tenfold.errors import MeasurementError
from tenfold.fingerprint import fingerprint
from tenfold.measure.diagnosis.detector import BottleneckDetector
from tenfold.measure.postgresql import explain as explain_module
from tenfold.measure.postgresql.explain import PROOF_INDEX, Plan, explain, positional
from tenfold.measure.postgresql.plans import scans
from tenfold.measure.probe.evidence import Evidence, StatementStats


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[str]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA sales")
        connection.execute(
            """CREATE TABLE "Sale" (id int PRIMARY KEY, buyer int, "order" int, state text, indexed int)"""
        )
        connection.execute(
            """INSERT INTO "Sale" SELECT n, n % 5000, n % 5000, (ARRAY['new', 'paid'])[n % 2 + 1], n % 5000
               FROM generate_series(1, 40000) n"""
        )
        connection.execute('CREATE INDEX ON "Sale" (indexed)')
        connection.execute("CREATE TABLE few AS SELECT n AS id, n AS buyer FROM generate_series(1, 100) n")
        connection.execute('CREATE TABLE sales.other AS SELECT * FROM "Sale"')
        connection.execute("ANALYZE")
    yield postgres_url
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute('DROP TABLE "Sale", few; DROP SCHEMA sales CASCADE')


def use(sql: str) -> StatementStats:
    return StatementStats(
        route="GET /", fingerprint=fingerprint(sql), site="app.py:1", executions=1, requests=1,
        executions_max=1, repeating_requests=0, repetitions_mean=0, total_s=1, slow_s=1, mean_ms=1,
    )  # fmt: skip


def plan(database: str, sql: str, **options: bool) -> Plan:
    (found,) = explain(database, [use(sql)], texts={fingerprint(sql): sql}, **options)
    return found


@pytest.mark.guarantee("a missing index is named, and its proof leaves nothing behind", pattern="evidence")
@pytest.mark.parametrize(
    ("sql", "column"),
    [
        ('SELECT id FROM "Sale" WHERE buyer = %(buyer_1)s::INTEGER', "buyer"),
        ('SELECT id FROM "Sale" s WHERE s.buyer IN (%(b_1)s, %(b_2)s) ORDER BY id LIMIT %(l)s', "buyer"),
        ('SELECT id FROM "Sale" WHERE "order" = 5', '"order"'),
        # Of two columns the more selective one is suggested.
        ('SELECT id FROM "Sale" WHERE state = %s AND buyer = %s', "buyer"),
        ('UPDATE "Sale" SET state = %s WHERE buyer = %s', "buyer"),
        ('SELECT * FROM "Sale" ORDER BY buyer DESC, id LIMIT %s OFFSET %s', "buyer DESC, id"),
        ('SELECT s.id FROM few JOIN "Sale" s ON s.buyer = few.id WHERE few.id = %s', "buyer"),
    ],
)
def test_missing_index_is_found(database: str, sql: str, column: str) -> None:
    (missing,) = plan(database, sql).missing
    assert missing.create == f'CREATE INDEX CONCURRENTLY ON "Sale" ({column})'
    assert missing.table_rows == 40_000
    assert missing.rows < 2_000
    assert missing.proof is None


@pytest.mark.control("a missing index is named, and its proof leaves nothing behind")
@pytest.mark.parametrize(
    "sql",
    [
        'SELECT id FROM "Sale" WHERE indexed = %s',
        'SELECT id FROM "Sale" WHERE id = %s',
        'SELECT id FROM "Sale" WHERE state = %s',  # half of the rows
        'SELECT count(*) FROM "Sale"',
        "SELECT id FROM few WHERE buyer = %s",  # small
        'SELECT * FROM "Sale" ORDER BY indexed LIMIT %s',
        'SELECT * FROM "Sale" ORDER BY buyer',
    ],
)
def test_no_index_is_suggested_where_none_would_help(database: str, sql: str) -> None:
    found = plan(database, sql)
    assert found.reason == ""
    assert found.missing == ()


def test_table_of_another_schema_is_qualified(database: str) -> None:
    (missing,) = plan(database, "SELECT 1 FROM sales.other WHERE buyer = %s").missing
    assert missing.create == "CREATE INDEX CONCURRENTLY ON sales.other (buyer)"


@pytest.mark.guarantee("a missing index is named, and its proof leaves nothing behind")
@pytest.mark.parametrize(
    "rest", ['"Sale" WHERE buyer = %s', "sales.other WHERE buyer = %s", '"Sale" ORDER BY buyer DESC LIMIT 20']
)
def test_proof_drops_its_index(database: str, rest: str) -> None:
    (missing,) = plan(database, f"SELECT id FROM {rest}", may_create_index=True).missing
    assert missing.proof is not None
    assert missing.proof.cost_after < missing.proof.cost_before / 2
    with psycopg.connect(database) as connection:
        left = connection.execute("SELECT 1 FROM pg_class WHERE starts_with(relname, %s)", (PROOF_INDEX,))
        assert left.fetchall() == []


def test_fingerprint_without_text_is_explained(database: str) -> None:
    (found,) = explain(database, [use('SELECT id FROM "Sale" WHERE buyer IN (1, 2) LIMIT 5')])
    assert [one.column for one in found.missing] == ["buyer"]


@pytest.mark.guarantee(
    "values of statements stay out of reports", pattern="evidence", under="values written into SQL"
)
def test_plan_lines_contain_no_literal_values(database: str) -> None:
    found = plan(database, """SELECT id FROM "Sale" WHERE state = 'secret' AND buyer = 7""")
    assert "Seq Scan on Sale" in found.lines[0]
    assert "secret" not in "".join(found.lines)


@pytest.mark.control("values of statements stay out of reports")
def test_the_control_postgresql_plan_contains_literal_values(database: str) -> None:
    with psycopg.connect(database) as connection:
        rows = connection.execute("""EXPLAIN SELECT id FROM "Sale" WHERE state = 'secret'""").fetchall()
    assert "secret" in str(rows)


def test_error_reason_contains_no_literal_value(database: str) -> None:
    found = plan(database, """SELECT id FROM "Sale" WHERE buyer = 'secret'""")
    assert found.reason == "a value in its text is invalid (22P02)"


def test_explain_does_not_run_statements(database: str) -> None:
    attack = 'SELECT 1; COMMIT; DROP TABLE "Sale"'
    assert "semicolon" in plan(database, attack).reason
    assert plan(database, 'DELETE FROM "Sale"').reason == ""
    assert plan(database, "SELECT nothing FROM nowhere").reason.startswith('relation "nowhere" does not')
    assert explain(database, [use("INSERT INTO few VALUES (1)"), use("COMMIT")]) == ()
    with psycopg.connect(database) as connection:
        assert connection.execute('SELECT count(*) FROM "Sale"').fetchone() == (40_000,)


def test_unreachable_database_is_a_measurement_error() -> None:
    with pytest.raises(MeasurementError, match="EXPLAIN cannot connect to the database"):
        explain("postgresql://nobody@127.0.0.1:1/none", [use("SELECT 1")])


def test_placeholders_become_positional() -> None:
    assert (
        positional("SELECT %s, %(a)s, %s, 5 %% 2, %(a)s, b ? 'k'") == "SELECT $1, $2, $3, 5 % 2, $2, b ? 'k'"
    )


@pytest.mark.parametrize(
    "sql",
    [
        'SELECT id FROM "Sale" WHERE false LIMIT 5',
        'SELECT id FROM "Sale" WHERE false ORDER BY buyer LIMIT 5',
        'SELECT id FROM "Sale" WHERE false',
        "SELECT 1 LIMIT 1",
        "SELECT n FROM generate_series(1, 5) n ORDER BY n LIMIT 2",
        'SELECT id FROM "Sale" WHERE buyer = (SELECT 1 WHERE false) LIMIT 5',
        'SELECT id FROM "Sale" UNION ALL SELECT id FROM few ORDER BY 1 LIMIT 5',
        "SELECT * FROM (VALUES (1), (2)) v (n) JOIN few ON few.id = v.n ORDER BY n LIMIT 5",
    ],
)
def test_plan_without_tables_is_read(database: str, sql: str) -> None:
    found = plan(database, sql)
    assert (found.reason, found.lines != ()) == ("", True)


def test_plan_that_cannot_be_read_does_not_hide_the_others(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outline_of_scans(tree: dict[str, str]) -> list[str]:
        return [tree["Relation Name"]]

    monkeypatch.setattr(explain_module, "outline", outline_of_scans)
    sqls = ['SELECT id FROM "Sale" LIMIT 5', 'SELECT id FROM "Sale" WHERE buyer = %s']
    first, second = explain(database, [use(sql) for sql in sqls], texts={fingerprint(s): s for s in sqls})
    assert first.reason.startswith("KeyError 'Relation Name' at test_explain.py:")
    assert [one.column for one in second.missing] == ["buyer"]


def test_proof_that_fails_has_a_reason(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_lookup(*args: object) -> float:
        raise KeyError("Execution Time")

    monkeypatch.setattr(explain_module, "_time_lookup_ms", time_lookup)
    (missing,) = plan(database, 'SELECT id FROM "Sale" WHERE buyer = %s', may_create_index=True).missing
    assert missing.proof is None
    assert missing.unproven.startswith("KeyError 'Execution Time' at ")
    blind = Evidence(seconds=1, workers=1, seen={})
    told = BottleneckDetector().rank(blind, None, plans=[Plan("x", missing=(missing,))]).not_measured
    assert any(line.startswith('proof of an index on "Sale" (buyer): KeyError') for line in told)


def test_leftover_index_that_cannot_be_dropped_does_not_prevent_a_proof(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(*args: object) -> None:
        raise psycopg.errors.InsufficientPrivilege("must be owner")

    monkeypatch.setattr(explain_module, "_drop_leftovers", drop)
    (missing,) = plan(database, 'SELECT id FROM "Sale" WHERE buyer = %s', may_create_index=True).missing
    assert missing.proof is not None


def test_rows_of_a_parallel_scan_include_all_workers() -> None:
    node = {
        "Node Type": "Seq Scan", "Parallel Aware": True, "Relation Name": "t", "Schema": "public",
        "Plan Rows": 10, "Filter": "(t.a = $1)",
    }  # fmt: skip
    (scan,) = scans({"Node Type": "Gather", "Plan Rows": 30, "Plans": [node]})
    assert (scan.columns, scan.rows) == (("a",), 30)
