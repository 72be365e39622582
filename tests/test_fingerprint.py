"""Fingerprints: statements that differ only in values have the same one, without the values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.fingerprint import fingerprint


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = ?"),
        ("SELECT a FROM t WHERE b = E'x''y\\'z'", "SELECT a FROM t WHERE b = ?"),
        ("SELECT a FROM t WHERE b = 'C:\\' AND c = 'secret'", "SELECT a FROM t WHERE b = ? AND c = ?"),
        (
            "SELECT a FROM t WHERE b = '-- no comment' /* 'no string */ AND c = 1",
            "SELECT a FROM t WHERE b = ? AND c = ?",
        ),
        ("SELECT a FROM t WHERE b = 'cut off", "SELECT a FROM t WHERE b = ?"),
        ("SELECT a\n  FROM t  -- why\n WHERE b=%(b_1)s::INTEGER", "SELECT a FROM t WHERE b=?"),
        ("SELECT a FROM t WHERE b IN ($1, $2,$3)", "SELECT a FROM t WHERE b IN (?+)"),
        (
            "SELECT a FROM t WHERE b IN (%(b_1_1)s::BIGINT, %(b_1_2)s::BIGINT)",
            "SELECT a FROM t WHERE b IN (?+)",
        ),
        ("SELECT a FROM t WHERE b IN (:b_1)", "SELECT a FROM t WHERE b IN (?+)"),
        ("INSERT INTO t (a) VALUES (1), (2) ,(3)", "INSERT INTO t (a) VALUES (?+)"),
        ("SELECT t1.c2, now()::date FROM t1 /* 7 */", "SELECT t1.c2, now()::date FROM t1"),
        ("SELECT '{}'::jsonb, $x$ it's $x$, -1.5e-3;", "SELECT ?, ?, ?"),
        ("SELECT x FROM t LIMIT %s OFFSET %s", "SELECT x FROM t LIMIT ? OFFSET ?"),
    ],
)
def test_values_are_replaced(sql: str, expected: str) -> None:
    assert fingerprint(sql) == expected


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.text(max_size=30))
def test_fingerprint_does_not_depend_on_values(numbers: list[int], text: str) -> None:
    quoted = text.replace("'", "''")
    listed = ", ".join(map(str, numbers))
    sql = f"SELECT a FROM t WHERE b IN ({listed}) AND c = '{quoted}'"
    assert fingerprint(sql) == "SELECT a FROM t WHERE b IN (?+) AND c = ?"


@given(st.text(max_size=3000))
def test_fingerprint_length_is_limited_for_any_text(sql: str) -> None:
    assert len(fingerprint(sql, limit=100)) <= 100
    assert fingerprint(sql) == fingerprint(sql)
