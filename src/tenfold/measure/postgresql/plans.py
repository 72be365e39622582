"""Analysis of PostgreSQL's query plans: tables read whole for a few rows, and the columns concerned. Pure.

A plan is the output of ``EXPLAIN (FORMAT JSON)``; rows are the planner's estimates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MIN_TABLE_ROWS = 10_000  # a smaller table is read whole in a millisecond
MAX_SHARE = 0.05  # of the table's rows; for more rows, reading the table whole may be right

_NAME = r'(?:(?P<alias>\w+|"[^"]+")\.)?(?P<column>[a-z_]\w*|"[^"]+")'
_CAST = r"(?:::[a-z_][\w ]*(?:\[\])?)?"
_EQUAL = re.compile(
    rf"\(\(?{_NAME}\)?{_CAST} = (?:ANY \()?\(?(?P<value>\$\d+|ARRAY\[|'|-?\d|\(?InitPlan|true|false)"
)
_JOIN = re.compile(r'\(?((?:\w+|"[^"]+")\.(?:\w+|"[^"]+")) = ((?:\w+|"[^"]+")\.(?:\w+|"[^"]+"))\)?')
_KEY = re.compile(rf"{_NAME}(?: (?P<order>DESC))?")
_LITERAL = re.compile(r"'(?:[^']|'')*'")


@dataclass(frozen=True, slots=True)
class Scan:
    """A table that is read whole although few of its rows are needed."""

    schema: str
    table: str
    columns: tuple[str, ...]  # compared for equality: an index on any of them would find the rows
    rows: float  # needed, as the planner estimates
    order: tuple[str, ...] = ()  # "DESC" or "" for each column, when all of them are an ORDER BY with a LIMIT


def scans(plan: Mapping[str, Any]) -> tuple[Scan, ...]:
    """Return scans of whole tables that an index could replace, with its candidate columns."""
    return (*_filter_scans(plan), *_join_scans(plan), *_sort_scans(plan))


def outline(plan: Mapping[str, Any], *, depth: int = 0) -> Iterator[str]:
    """Yield the plan as indented lines, without the values in the statement."""
    table = f" on {plan['Relation Name']}" if "Relation Name" in plan else ""
    index = f" using {plan['Index Name']}" if "Index Name" in plan else ""
    condition = plan.get("Filter") or plan.get("Index Cond") or plan.get("Hash Cond") or ""
    shown = f"  {_LITERAL.sub('?', str(condition))}" if condition else ""
    yield f"{'  ' * depth}{plan['Node Type']}{index}{table}  (rows {plan['Plan Rows']:,}){shown}"
    for child in plan.get("Plans", ()):
        yield from outline(child, depth=depth + 1)


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _filter_scans(plan: Mapping[str, Any]) -> Iterator[Scan]:
    for node in _nodes(plan):
        if _reads_whole_table(node) and "Filter" in node and " OR " not in node["Filter"]:
            columns = tuple(
                dict.fromkeys(_unquote(found["column"]) for found in _EQUAL.finditer(node["Filter"]))
            )
            if columns:
                yield _scan(node, columns, float(node["Plan Rows"]) * _workers(node))


def _reads_whole_table(node: Mapping[str, Any]) -> bool:
    """True for every row in the table's order or, for an ORDER BY, in the order of an unrelated index."""
    kind = node["Node Type"]
    return kind == "Seq Scan" or (kind == "Index Scan" and "Index Cond" not in node)


def _join_scans(plan: Mapping[str, Any]) -> Iterator[Scan]:
    """Yield tables that a hash join reads whole to keep few rows: the join's column has no index."""
    for node in _nodes(plan):
        found = _JOIN.search(node.get("Hash Cond", ""))
        if node["Node Type"] != "Hash Join" or found is None:
            continue
        by_alias = dict(side.rsplit(".", 1) for side in found.groups())
        for child in _below_hash(node):
            alias = child.get("Alias", "")
            column = by_alias.get(alias) or by_alias.get(f'"{alias}"')
            if child["Node Type"] == "Seq Scan" and "Filter" not in child and column is not None:
                yield _scan(child, (_unquote(column),), float(node["Plan Rows"]))


def _sort_scans(plan: Mapping[str, Any]) -> Iterator[Scan]:
    """Yield tables that are read and sorted whole although a LIMIT needs only the first rows."""
    for node in _nodes(plan):
        below = node.get("Plans", ())
        while below and below[0]["Node Type"] in ("Gather Merge", "Result"):
            below = below[0].get("Plans", ())  # WHERE false is a Result that reads nothing
        if node["Node Type"] != "Limit" or not below or below[0]["Node Type"] != "Sort":
            continue
        source = next(iter(below[0].get("Plans", ())), below[0])
        keys = [_KEY.fullmatch(key) for key in below[0]["Sort Key"]]
        if source["Node Type"] == "Seq Scan" and "Filter" not in source and all(keys):
            found = [key for key in keys if key is not None]
            columns, order = (tuple(key[name] or "" for key in found) for name in ("column", "order"))
            yield Scan(
                source.get("Schema", "public"),
                source["Relation Name"],
                tuple(map(_unquote, columns)),
                0.0,
                order,
            )


def _below_hash(join: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for child in join.get("Plans", ()):
        yield next(iter(child.get("Plans", ())), child) if child["Node Type"] == "Hash" else child


def _scan(node: Mapping[str, Any], columns: tuple[str, ...], rows: float) -> Scan:
    return Scan(node.get("Schema", "public"), node["Relation Name"], columns, rows)


def _workers(node: Mapping[str, Any]) -> int:
    # A parallel scan's rows are those of one process; two workers and the leader are PostgreSQL's default.
    return 3 if node.get("Parallel Aware") else 1


def _unquote(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
