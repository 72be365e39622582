"""Remedies by the kind of a statement, severity, shortened statements, and lines that are one loop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.diagnosis.bottleneck import severity
from tenfold.measure.diagnosis.python_causes import clusters
from tenfold.measure.diagnosis.statement_causes import abbreviate, repetition_remedy


@pytest.mark.parametrize(
    ("sql", "remedy"),
    [
        ("SELECT a FROM t WHERE b = ?", "selectinload"),
        ("SELECT count(*) FROM t WHERE b = ?", "GROUP BY"),
        ("SELECT coalesce(sum(a), ?) FROM t WHERE b = ?", "GROUP BY"),
        ("SELECT EXISTS (SELECT ? FROM t WHERE b = ?)", "GROUP BY"),
        ("SELECT a FROM t WHERE b = ? FOR UPDATE", "FOR UPDATE"),
        ("SELECT a, b FROM settings", "keep its rows"),
        ("SELECT nextval(?)", "outside of the loop"),
        ("INSERT INTO t (a) VALUES (?)", "write all rows with one statement"),
        ("UPDATE t SET a = ? WHERE b = ?", "change all rows with one statement"),
        ("DELETE FROM t WHERE b = ?", "change all rows with one statement"),
    ],
)
def test_remedy_of_a_repeated_statement_fits_its_kind(sql: str, remedy: str) -> None:
    told = repetition_remedy(sql)
    assert remedy in told
    assert ("selectinload" in told) == (remedy == "selectinload")


@pytest.mark.parametrize(
    ("share", "expected"),
    [(None, "critical"), (0.5, "critical"), (0.49, "high"), (0.2, "high"), (0.1, "medium")],
)
def test_severity_follows_the_share(share: float | None, expected: str) -> None:
    assert severity(share) == expected


def test_long_column_lists_are_cut_before_the_tables() -> None:
    text = abbreviate(
        "SELECT " + ", ".join(f"orders.column_{n}" for n in range(30)) + " FROM orders WHERE a = ?"
    )
    assert text == "SELECT … FROM orders WHERE a = ?"


lines = st.dictionaries(
    st.builds("{}.py:{}".format, st.sampled_from("ab"), st.integers(1, 60)), st.floats(0.0, 9.0), max_size=20
)


@given(lines)
def test_clusters_hold_each_line_once(seconds: dict[str, float]) -> None:
    groups = list(clusters(seconds))
    assert sorted(line for _, near in groups for line in near) == sorted(seconds)
    assert all(seconds[heaviest] == max(seconds[one] for one in near) for heaviest, near in groups)
