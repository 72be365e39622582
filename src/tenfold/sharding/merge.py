"""Queries over all shards: what each shard is asked, and how the answers are merged. Pure.

Filters, ORDER BY and ``LIMIT limit + offset`` are sent to every shard; rows are merged by the values of
ORDER BY; COUNT, SUM, MIN, MAX and AVG are combined from each shard's. Everything else (GROUP BY, DISTINCT,
windows, subqueries, functions that may be aggregates) would be wrong when simply put together, and is
refused with the reason.
"""

from __future__ import annotations

import base64
import heapq
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from itertools import chain, islice
from typing import Any

from sqlalchemy import Table, and_, cast, column, exists, func, not_, or_, select, table, types
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ColumnClause,
    ColumnElement,
    FunctionFilter,
    Label,
    Over,
    TextClause,
    UnaryExpression,
    WithinGroup,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import CTE, Alias, FromClause, Join, Select, SelectBase, Subquery

from tenfold.errors import PageTokenError, QueryRefusedError
from tenfold.sharding.tables import shard_key

__all__ = ["LOAD_APART", "MAX_ROWS", "ShardQuery", "next_page_token", "plan_page", "plan_query"]

MAX_ROWS = 20_000
_BUCKETS = table("buckets", column("bucket"), column("owned"), schema="tenfold")
_AGGREGATES = ("count", "sum", "min", "max", "avg")
# Functions of one row. Any other may be an aggregate, which SQLAlchemy cannot tell.
_ROW_FUNCTIONS = frozenset(
    [
        "abs",
        "ceil",
        "char_length",
        "coalesce",
        "concat",
        "current_date",
        "current_timestamp",
        "date_part",
        "date_trunc",
        "extract",
        "floor",
        "greatest",
        "least",
        "left",
        "length",
        "lower",
        "ltrim",
        "mod",
        "now",
        "nullif",
        "plainto_tsquery",
        "power",
        "replace",
        "right",
        "round",
        "rtrim",
        "similarity",
        "sqrt",
        "substr",
        "substring",
        "to_char",
        "to_tsquery",
        "to_tsvector",
        "trim",
        "trunc",
        "ts_rank",
        "upper",
        "websearch_to_tsquery",
    ]
)
_ORDERED = (
    types.Integer,
    types.Numeric,
    types.Float,
    types.Date,
    types.DateTime,
    types.Boolean,
    types.Uuid,
    types.LargeBinary,
)
_C_COLLATIONS = ("C", "POSIX", "ucs_basic", "C.UTF-8", "C.utf8", "pg_c_utf8")

# ------------------------------------------------------------------ plan


@dataclass(frozen=True, slots=True)
class OrderTerm:
    """One expression of ORDER BY."""

    expression: ColumnElement[Any]
    descending: bool
    nulls_first: bool

    def key(self, value: Any) -> Any:
        """What puts values into PostgreSQL's order: NULLs at their end, NaN above all numbers."""
        if value is None:
            return (not self.nulls_first,)
        ordered = (value != value, 0 if value != value else value)  # noqa: PLR0124 - NaN
        return (self.nulls_first, _Descending(ordered) if self.descending else ordered)


class _Descending:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class ShardQuery:
    """A query over all shards.

    Attributes:
        statement: for each shard, yet without its epoch; behind the caller's columns it has those of ORDER
            BY.
        names: of the caller's columns.
        order: how the rows of all shards are merged.
        limit: rows that the caller gets at most; None is all of them.
        offset: rows that are left out first.
        most: rows that one shard may return: :data:`MAX_ROWS` or fewer, and one more to notice it.
        combine: of an aggregate query, what makes the columns of one row of each shard's; else empty.
    """

    statement: Select[Any]
    names: tuple[str, ...]
    order: tuple[OrderTerm, ...] = ()
    limit: int | None = None
    offset: int = 0
    most: int = MAX_ROWS
    combine: tuple[Callable[[Sequence[Any]], Any], ...] = ()

    def statement_for(self, epoch: int) -> Select[Any]:
        """The statement for a shard that has to be in this epoch."""
        wanted = cast(epoch, types.BigInteger())
        return self.statement.where(func.tenfold.require_epoch(wanted, type_=types.Boolean()))

    def merge(self, answers: Sequence[Sequence[Sequence[Any]]]) -> list[Sequence[Any]]:
        """Merge the rows of all shards; those of a query with ORDER BY keep its values behind the columns.

        Raises:
            QueryRefusedError: there are more rows than may be held.
        """
        if self.combine:
            rows = [rows[0] for rows in answers]
            return [tuple(combine(rows) for combine in self.combine)]
        if self.limit is None and sum(map(len, answers)) > self.most:
            raise QueryRefusedError(
                f"a query over all shards has more than {self.most:,} rows: give it a LIMIT, or read pages"
            )
        merged: Iterable[Sequence[Any]]
        if self.order:
            key = partial(_row_key, self.order, len(self.names))
            merged = heapq.merge(*answers, key=key)
        else:
            merged = chain.from_iterable(answers)
        stop = None if self.limit is None else self.offset + self.limit
        return list(islice(merged, self.offset, stop))


def _row_key(order: Sequence[OrderTerm], width: int, row: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(term.key(value) for term, value in zip(order, row[width:], strict=True))


def plan_query(statement: Any, *, max_rows: int = MAX_ROWS) -> ShardQuery:
    """Plan a SELECT over all shards.

    Raises:
        QueryRefusedError: its merged result would be wrong, or cannot be known to be right.
    """
    query = _require_select(statement)
    sources = _sharded_tables(query)
    order = tuple(_order_term(clause) for clause in query._order_by_clauses)
    columns = [_unlabel(one) for one in query._raw_columns]
    aggregates = [_aggregate(one) for one in columns]
    for clause in chain(columns if not any(aggregates) else (), query._where_criteria):
        _require_row_wise(clause)
    names = _names(query)
    limit, offset = _number(query, "limit"), _number(query, "offset") or 0
    filtered = query.limit(None).offset(None)
    for source in sources:
        filtered = filtered.where(_is_owned(source))
    if any(aggregates):
        return _plan_aggregates(
            filtered, names, aggregates, is_plain=not order and limit is None and not offset
        )
    for number, term in enumerate(order):
        filtered = filtered.add_columns(term.expression.label(f"tenfold_order_{number}"))
    most = max_rows + 1 if limit is None else limit + offset
    if limit is not None and most > max_rows:
        raise QueryRefusedError(
            f"LIMIT and OFFSET add up to {most:,} rows of each shard, {max_rows:,} are allowed: read pages"
        )
    return ShardQuery(filtered.limit(most), names, order, limit, offset, max_rows)


def _names(query: Select[Any]) -> tuple[str, ...]:
    """The columns' names as SQLAlchemy gives them: functions without a label are numbered."""
    found: list[str] = []
    counts: Counter[str] = Counter()
    for number, (raw, described) in enumerate(
        zip(query._raw_columns, query.column_descriptions, strict=True)
    ):
        name = str(described["name"] or f"column_{number}")
        if isinstance(raw, Label):
            name = raw.name
        elif isinstance(raw, FunctionElement):
            counts[raw.name] += 1
            name = f"{raw.name}_{counts[raw.name]}"
        found.append(name)
    return tuple(found)


def _require_select(statement: Any) -> Select[Any]:
    if not isinstance(statement, Select):
        raise QueryRefusedError(
            f"only a select() can be sent to all shards, not {type(statement).__name__}: "
            "write in a session of each key"
        )
    query: Any = statement
    refused = {
        "GROUP BY": query._group_by_clauses,
        "HAVING": query._having_criteria,
        "DISTINCT": query._distinct or query._distinct_on,
        "FOR UPDATE": query._for_update_arg is not None,
        "FETCH": query._fetch_clause is not None,
        "a CTE": query._independent_ctes,
        "a prefix, suffix or hint": query._prefixes or query._suffixes or query._statement_hints,
    }
    for what, found in refused.items():
        if found:
            raise QueryRefusedError(f"{what} over all shards would be put together wrongly: {_ELSEWHERE}")
    return query  # type: ignore[no-any-return]


LOAD_APART = "collections are not joined over all shards: load them with selectinload()"
_ELSEWHERE = "run it for each key, or on a database that gathers the rows for reports"


def _sharded_tables(query: Select[Any]) -> list[FromClause]:
    froms = _froms(query)
    if len(froms) != 1:
        raise QueryRefusedError(
            "a query over all shards reads one table, or tables joined by their shard key"
        )
    sources: list[FromClause] = []
    pending: list[FromClause] = [froms[0]]
    joins: list[Join] = []
    while pending:
        source = pending.pop()
        if isinstance(source, Join):
            joins.append(source)
            pending += [source.left, source.right]
            continue
        original = source.element if isinstance(source, Alias) else source
        if not isinstance(original, Table) or not shard_key(original):
            if isinstance(original, Subquery) and query._with_options:
                raise QueryRefusedError(LOAD_APART)
            name = original.name if isinstance(original, Table) else "a subquery or CTE"
            raise QueryRefusedError(f"{name} is no sharded table, so it cannot be read on all shards at once")
        sources.append(source)
    for join in joins:
        _require_same_shard(join)
    return sources


def _froms(query: Any) -> Sequence[FromClause]:
    """The FROM list. SQLAlchemy makes it by compiling the statement, which a plain one does not need."""
    if not (query._setup_joins or query._from_obj or query._with_options):
        froms = query.columns_clause_froms
        used = {found for clause in query._where_criteria for found in clause._from_objects}
        if len(froms) == 1 and isinstance(froms[0], Table) and used <= {froms[0]}:
            return [froms[0]]
    found: Sequence[FromClause] = query.get_final_froms()
    return found


def _require_same_shard(join: Join) -> None:
    """Refuse a join that would need rows of two shards: both sides must be equal in bucket or shard key."""
    equal: set[frozenset[tuple[int, str]]] = set()
    for clause in _conjunction(join.onclause):
        if isinstance(clause, BinaryExpression) and clause.operator is operators.eq:
            sides = [_column_of(side) for side in (clause.left, clause.right)]
            if all(sides):
                equal.add(frozenset(side for side in sides if side))
    for right in _leaves(join.right):
        if not any(_is_same_key(left, right, equal) for left in _leaves(join.left)):
            raise QueryRefusedError(
                "a join over all shards must compare the bucket or the shard key of both tables: rows of two "
                "shards never meet"
            )


def _is_same_key(left: FromClause, right: FromClause, equal: set[frozenset[tuple[int, str]]]) -> bool:
    def are_equal(one: str, other: str) -> bool:
        return frozenset([(hash(left), one), (hash(right), other)]) in equal

    keys = [shard_key(one.element if isinstance(one, Alias) else one) for one in (left, right)]
    same = len(keys[0]) == len(keys[1]) and all(map(are_equal, *keys))
    return same or are_equal("bucket", "bucket")


def _leaves(source: FromClause) -> Iterator[FromClause]:
    if isinstance(source, Join):
        yield from _leaves(source.left)
        yield from _leaves(source.right)
    else:
        yield source


def _conjunction(clause: Any) -> Iterator[Any]:
    if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        for part in clause.clauses:
            yield from _conjunction(part)
    elif clause is not None:
        yield clause


def _column_of(expression: Any) -> tuple[int, str] | None:
    """A column as its table and name. The ORM's annotated copies of a table have its hash."""
    owner = getattr(expression, "table", None)
    return None if owner is None else (hash(owner), expression.name)


def _require_row_wise(clause: Any) -> None:
    for element in visitors.iterate(clause):
        if isinstance(element, SelectBase | Subquery | CTE):
            raise QueryRefusedError(f"a subquery would see the rows of one shard only: {_ELSEWHERE}")
        if isinstance(element, Over | WithinGroup | FunctionFilter):
            raise QueryRefusedError(
                f"a window, WITHIN GROUP or FILTER would see one shard only: {_ELSEWHERE}"
            )
        if isinstance(element, TextClause) or (isinstance(element, ColumnClause) and element.is_literal):
            raise QueryRefusedError(
                "SQL written as text cannot be checked, so it is not sent to all shards: write expressions"
            )
        if isinstance(element, FunctionElement):
            name = str(getattr(element, "name", "")).lower()
            if name in _AGGREGATES:
                raise QueryRefusedError(
                    f"{name}() beside other columns or in an expression needs GROUP BY: {_ELSEWHERE}"
                )
            if name not in _ROW_FUNCTIONS:
                raise QueryRefusedError(f"{name}() is not known to look at one row only: {_ELSEWHERE}")


def _unlabel(expression: Any) -> Any:
    return expression.element if isinstance(expression, Label) else expression


def _number(query: Any, what: str) -> int | None:
    clause = getattr(query, f"_{what}_clause")
    if clause is None:
        return None
    value = getattr(clause, "value", None)
    if type(value) is not int or value < 0:
        raise QueryRefusedError(f"{what.upper()} of a query over all shards has to be a number")
    return value


def _is_owned(source: FromClause) -> ColumnElement[bool]:
    """Rows that a move has left behind do not count. There are hardly ever any: the inner side is empty."""
    left_behind = select(_BUCKETS.c.bucket).where(
        _BUCKETS.c.bucket == source.c.bucket, not_(_BUCKETS.c.owned)
    )
    return not_(exists(left_behind.correlate(source)))


# ------------------------------------------------------------------ order


def _order_term(clause: Any) -> OrderTerm:
    descending, nulls_first, expression = False, None, clause
    while isinstance(expression, UnaryExpression) and expression.modifier is not None:
        if expression.modifier is operators.desc_op:
            descending = True
        elif expression.modifier in (operators.nulls_first_op, operators.nulls_last_op):
            nulls_first = expression.modifier is operators.nulls_first_op
        elif expression.modifier is not operators.asc_op:
            break
        expression = expression.element
    if isinstance(expression, Label):
        expression = expression.element
    if not isinstance(expression, ColumnElement):
        raise QueryRefusedError("ORDER BY over all shards needs a column or expression, not its name as text")
    _require_row_wise(expression)
    _require_ordered(expression, "ORDER BY")
    return OrderTerm(expression, descending, descending if nulls_first is None else nulls_first)


def _require_ordered(expression: Any, what: str) -> None:
    """Refuse values that Python would put into another order than PostgreSQL."""
    kind = expression.type
    if isinstance(kind, types.Enum) or not isinstance(kind, (*_ORDERED, types.String)):
        raise QueryRefusedError(f"{what} over all shards cannot compare values of type {kind!r}")
    if isinstance(kind, types.String):
        collation = kind.collation
        if isinstance(expression, BinaryExpression) and expression.operator is operators.collate:
            collation = str(getattr(expression.right, "collation", ""))
        if collation not in _C_COLLATIONS:
            raise QueryRefusedError(
                f'{what} over all shards needs text in the C collation: write .collate("C") behind the column'
            )


# ------------------------------------------------------------------ aggregates


def _aggregate(expression: Any) -> tuple[str, tuple[Any, ...]] | None:
    if not isinstance(expression, FunctionElement):
        return None
    name = str(getattr(expression, "name", "")).lower()
    return (name, tuple(expression.clauses)) if name in _AGGREGATES else None


def _plan_aggregates(
    query: Select[Any],
    names: tuple[str, ...],
    aggregates: Sequence[tuple[str, tuple[Any, ...]] | None],
    *,
    is_plain: bool,
) -> ShardQuery:
    if not all(aggregates) or not is_plain:
        raise QueryRefusedError(
            "COUNT, SUM, MIN, MAX and AVG over all shards stand alone: no other column, ORDER BY or LIMIT"
        )
    columns: list[Any] = []
    combine: list[Callable[[Sequence[Any]], Any]] = []
    for name, arguments in (one for one in aggregates if one):
        for argument in arguments:
            if isinstance(argument, ColumnClause) and argument.is_literal and argument.name == "*":
                continue
            if isinstance(argument, UnaryExpression) and argument.operator is operators.distinct_op:
                raise QueryRefusedError(
                    f"{name}(DISTINCT …) counts a value once for each shard: {_ELSEWHERE}"
                )
            _require_row_wise(argument)
        if name in ("min", "max"):
            _require_ordered(arguments[0], name.upper())
        elif name != "count" and not isinstance(
            arguments[0].type, types.Integer | types.Numeric | types.Float
        ):
            raise QueryRefusedError(
                f"{name.upper()} over all shards needs numbers, not {arguments[0].type!r}"
            )
        first = len(columns)
        if name == "avg":
            columns += [func.sum(*arguments), func.count(*arguments)]
        else:
            columns.append(getattr(func, name)(*arguments))
        combine.append(partial(_COMBINE[name], first))
    labelled = [one.label(f"tenfold_part_{number}") for number, one in enumerate(columns)]
    statement = query.with_only_columns(*labelled, maintain_column_froms=True)
    return ShardQuery(statement, names, combine=tuple(combine))


def _values(column_: int, rows: Sequence[Any]) -> list[Any]:
    return [row[column_] for row in rows if row[column_] is not None]


def _sum(first: int, rows: Sequence[Any]) -> Any:
    values = _values(first, rows)
    return sum(values[1:], values[0]) if values else None


def _extreme(pick: Callable[..., Any], first: int, rows: Sequence[Any]) -> Any:
    values = _values(first, rows)
    return pick(values, key=lambda value: (value != value, value)) if values else None  # noqa: PLR0124 - NaN


def _average(first: int, rows: Sequence[Any]) -> Any:
    total, count = _sum(first, rows), _sum(first + 1, rows)
    if not count:
        return None
    return total / count if isinstance(total, float) else Decimal(total) / count


_COMBINE: dict[str, Callable[..., Any]] = {
    "count": _sum,
    "sum": _sum,
    "min": partial(_extreme, min),
    "max": partial(_extreme, max),
    "avg": _average,
}

# ------------------------------------------------------------------ pages

_READERS: dict[str, tuple[type, Callable[[str], Any]]] = {
    "i": (int, int),
    "f": (float, float),
    "d": (Decimal, Decimal),
    "s": (str, str),
    "t": (datetime, datetime.fromisoformat),
    "y": (date, date.fromisoformat),
    "u": (uuid.UUID, uuid.UUID),
}


def plan_page(statement: Any, *, size: int, after: str = "") -> ShardQuery:
    """Plan one page of a query with ORDER BY: rows behind those of the page before, by their values (keyset).

    The primary key is appended to ORDER BY, so that no row is skipped or repeated.

    Raises:
        QueryRefusedError: as :func:`plan_query`; or ORDER BY may be NULL.
        PageTokenError: ``after`` is no token of a page of this query.
    """
    query = _require_select(statement)
    if not 0 < size < MAX_ROWS or _number(query, "limit") is not None or _number(query, "offset"):
        raise QueryRefusedError(
            f"a page has fewer than {MAX_ROWS:,} rows, and its query no LIMIT or OFFSET of its own"
        )
    source = _sharded_tables(query)[-1]
    given = [_order_term(clause) for clause in query._order_by_clauses]
    for term in given:
        if getattr(term.expression, "nullable", True):
            raise QueryRefusedError("pages need an ORDER BY of columns that are never NULL")
    ends_descending = bool(given) and given[-1].descending
    for key in (*source.primary_key, source.c.bucket):
        query = query.order_by(key.desc() if ends_descending else key.asc())
    terms = [_order_term(clause) for clause in query._order_by_clauses]
    if after:
        values = _read_token(after, terms)
        query = query.where(_is_after(terms, values))
    return plan_query(query.limit(size + 1))


def _is_after(terms: Sequence[OrderTerm], values: Sequence[Any]) -> ColumnElement[bool]:
    """A row comparison, written out as directions may differ: a > 1 OR (a = 1 AND b > 2)."""
    found: list[ColumnElement[bool]] = []
    for number, (term, value) in enumerate(zip(terms, values, strict=True)):
        bound: BindParameter[Any] = BindParameter(None, value, type_=term.expression.type, unique=True)
        later = term.expression < bound if term.descending else term.expression > bound
        equal = [one.expression == old for one, old in zip(terms[:number], values, strict=False)]
        found.append(and_(*equal, later))
    return or_(*found)


def next_page_token(row: Sequence[Any], width: int) -> str:
    """The token of the page behind this row, whose values of ORDER BY are behind ``width`` columns.

    Raises:
        QueryRefusedError: a value cannot be written into a token.
    """
    found: list[str] = []
    for value in row[width:]:
        kind = next((name for name, (one, _) in _READERS.items() if type(value) is one), "")
        if not kind:
            raise QueryRefusedError(f"pages cannot be ordered by values of type {type(value).__name__}")
        found.append(kind + (value.isoformat() if isinstance(value, date) else str(value)))
    return base64.urlsafe_b64encode(json.dumps(found).encode()).decode().rstrip("=")


def _read_token(text: str, terms: Sequence[OrderTerm]) -> list[Any]:
    """Read a token, which anybody may have written: each value has to be one of its column's type."""
    try:
        words = json.loads(base64.urlsafe_b64decode(text[:4096] + "=" * (-len(text) % 4)))
        values = [_READERS[word[0]][1](word[1:]) for word in words]
        for value, term in zip(values, terms, strict=True):
            if type(value) is not term.expression.type.python_type or value != value:  # noqa: PLR0124 - NaN
                raise ValueError
            if (isinstance(value, int) and abs(value) >= 2**63) or (isinstance(value, str) and "\0" in value):
                raise ValueError
        return values
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        raise PageTokenError("that is no token of a page of this query: begin at the first page") from None
