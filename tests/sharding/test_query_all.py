"""Queries over all shards: as one database with all rows answers, or refused; also while buckets move."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, distinct, exists, func, literal_column, or_, select, text, true, union
from sqlalchemy.orm import Session, aliased, joinedload, selectinload

from tenfold.errors import BucketMovedError, PageTokenError, QueryRefusedError
from tenfold.sharding import ShardedDatabase
from tenfold.sharding.merge import ShardQuery
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Line, Order, Plain, PlainOrder
from tests.support.waiting import eventually

ROWS = 300
OURS = Order.plain == "compared"
NOTES = ["", "a", "B", "b", "Z", "é", "z", "\u00df", "\U0001f600", "\uffee", "a b", "aB"]


@pytest.fixture(scope="module")
def one_database(shards: Shards) -> Iterator[Any]:
    """The shards' rows once more, in one table of the primary."""
    chance = random.Random(5)
    routed: dict[str, list[dict[str, Any]]] = {name: [] for name in shards.urls}
    directory = shards.store.load()
    rows = []
    for number in range(ROWS):
        user = 1_000_000 + chance.randrange(60)
        row = {
            "id": 10_000 + number,
            "user_id": user,
            "total": chance.randrange(-5, 12),
            "price": chance.choice([None, Decimal("NaN"), Decimal(chance.randrange(-999, 999)) / 7]),
            "weight": chance.choice([None, math.nan, math.inf, chance.gauss(0, 10)]),
            "note": chance.choice([None, *NOTES]),
            "plain": "compared",
            "placed_at": chance.choice(
                [None, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=chance.randrange(40))]
            ),
        }
        rows.append(row)
        place = directory.place(user)
        routed[place.shard].append({**row, "bucket": place.bucket})
    for name, found in routed.items():
        engine = create_engine(shards.urls[name].replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            connection.execute(Order.__table__.insert(), found)
        engine.dispose()
    assert all(routed.values())
    engine = create_engine(shards.primary.url.replace("postgresql:", "postgresql+psycopg:"))
    Plain.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(PlainOrder.__table__.insert(), rows)
    yield engine
    engine.dispose()
    for name in shards.urls:
        shards.execute(name, "DELETE FROM orders WHERE plain = 'compared'")


# ------------------------------------------------------------------ the same answers

COLUMNS = ["id", "user_id", "total", "price", "weight", "note", "placed_at"]
FILTERS: list[Callable[[Any], Any]] = [
    lambda t: true(),
    lambda t: t.total > 3,
    lambda t: t.note.in_(["a", "é", "Z"]),
    lambda t: or_(t.price.is_(None), t.total < 0),
    lambda t: func.lower(t.note) == "b",
    lambda t: t.total == 99,
]
AGGREGATES: list[Callable[[Any], Any]] = [
    lambda t: func.count(),
    lambda t: func.count(t.note),
    lambda t: func.count(t.id).label("named"),
    lambda t: func.sum(t.total),
    lambda t: func.sum(t.total * 2 + 1),
    lambda t: func.min(t.note),
    lambda t: func.max(t.note),
    lambda t: func.min(t.placed_at),
    lambda t: func.max(t.weight),
    lambda t: func.min(t.price),
    lambda t: func.avg(t.total),
    lambda t: func.avg(t.weight),
    lambda t: func.sum(t.price),
]


@st.composite
def order_terms(draw: st.DrawFn) -> list[tuple[str, bool, str]]:
    names = draw(st.lists(st.sampled_from(COLUMNS), max_size=3, unique=True))
    return [
        (name, draw(st.booleans()), draw(st.sampled_from(["", "nulls_first", "nulls_last"])))
        for name in names
    ]


def ordered(table: Any, terms: list[tuple[str, bool, str]]) -> list[Any]:
    found = []
    for name, descending, nulls in terms:
        term = getattr(table, name).desc() if descending else getattr(table, name).asc()
        found.append(getattr(term, nulls)() if nulls else term)
    return found


def alike(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of sums of floats and of quotients."""
    if isinstance(one, float | Decimal) and other is not None:
        return one == other or (one != one and other != other) or math.isclose(one, other, rel_tol=1e-12)
    return bool(one == other)


@pytest.mark.guarantee(
    "a query over all shards answers as one database with all rows",
    pattern="sharding",
    under="random queries",
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.sampled_from(FILTERS),
    terms=order_terms(),
    limit=st.one_of(st.none(), st.integers(0, 40)),
    offset=st.integers(0, 30),
    chosen=st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=3, unique=True),
    by_id=st.booleans(),
)
def test_rows_are_those_of_one_database(
    database: ShardedDatabase,
    one_database: Any,
    where: Any,
    terms: Any,
    limit: Any,
    offset: Any,
    chosen: Any,
    by_id: bool,
) -> None:
    def query(table: Any) -> Any:
        names = list(dict.fromkeys([*chosen, *(name for name, *_ in terms)]))
        statement = select(*(getattr(table, name) for name in names)).where(
            where(table), table.plain == "compared"
        )
        statement = statement.order_by(*ordered(table, [*terms, ("id", False, "")] if by_id else terms))
        return statement.limit(limit).offset(offset)

    found = [tuple(row) for row in database.query_all(query(Order))]
    with one_database.connect() as connection:
        wanted = [tuple(row) for row in connection.execute(query(PlainOrder))]
    assert len(found) == len(wanted)
    if by_id:
        assert all(
            alike(*pair) for rows in zip(found, wanted, strict=True) for pair in zip(*rows, strict=True)
        )
    elif terms:  # any of the rows that are equal in ORDER BY may come first
        keys = [
            list(dict.fromkeys([*chosen, *(name for name, *_ in terms)])).index(name) for name, *_ in terms
        ]
        for one, other in zip(found, wanted, strict=True):
            assert all(alike(one[key], other[key]) for key in keys)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.sampled_from(FILTERS), chosen=st.lists(st.sampled_from(AGGREGATES), min_size=1, max_size=4))
def test_aggregates_are_those_of_one_database(
    database: ShardedDatabase, one_database: Any, where: Any, chosen: Any
) -> None:
    def query(table: Any) -> Any:
        return select(*(one(table) for one in chosen)).where(where(table), table.plain == "compared")

    found = database.query_all(query(Order)).one()
    with one_database.connect() as connection:
        wanted = connection.execute(query(PlainOrder)).one()
    assert all(alike(*pair) for pair in zip(found, wanted, strict=True)), (found, wanted)
    assert list(found._fields) == list(wanted._fields)


@pytest.mark.control(
    "a query over all shards answers as one database with all rows", "put together without merging"
)
def test_the_control_concatenated_shards_answer_wrongly(database: ShardedDatabase, one_database: Any) -> None:
    query = select(Order.total).where(OURS).order_by(Order.total.desc()).limit(50)
    found = list(database.query_all(query).scalars())
    by_shard = [list(database._ask(name, query, False)) for name in database.directory().shard_epochs]
    put_together = [row[0] for rows in by_shard for row in rows][:50]
    assert sorted(found, reverse=True) == found != put_together


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    terms=st.lists(
        st.tuples(st.sampled_from(["user_id", "total", "id"]), st.booleans(), st.just("")),
        max_size=2,
        unique_by=lambda t: t[0],
    ),
    size=st.integers(1, 120),
)
def test_pages_have_each_row_once_and_in_order(
    database: ShardedDatabase, one_database: Any, terms: Any, size: int
) -> None:
    found: list[Any] = []
    after = ""
    while True:
        page = database.query_page(
            select(Order.id, Order.user_id, Order.total).where(OURS).order_by(*ordered(Order, terms)),
            size=size,
            after=after,
        )
        assert len(page.rows) == size or not page.next
        found += [tuple(row) for row in page.rows]
        if not (after := page.next):
            break
    with one_database.connect() as connection:
        wanted = connection.execute(select(PlainOrder.id, PlainOrder.user_id, PlainOrder.total)).all()
    assert Counter(found) == Counter(map(tuple, wanted))
    positions = {"id": 0, "user_id": 1, "total": 2}
    signed = [tuple(row[positions[name]] * (-1 if down else 1) for name, down, _ in terms) for row in found]
    assert signed == sorted(signed)


def test_objects_and_their_lines(database: ShardedDatabase, shards: Shards) -> None:
    for name in shards.urls:
        user = shards.user_on(name)
        with database.session_for(user) as session:
            session.add(
                Order(
                    user_id=user,
                    plain="objects",
                    lines=[Line(number=n, user_id=user, product=name) for n in (1, 2)],
                )
            )
    query = select(Order).where(Order.plain == "objects").order_by(Order.user_id)
    orders = database.query_all(query.options(selectinload(Order.lines))).scalars().all()
    assert [[line.product for line in order.lines] for order in orders] == [
        [name] * 2
        for name in sorted(
            shards.urls, key=lambda name: next(o.user_id for o in orders if o.lines[0].product == name)
        )
    ]
    joined = (
        select(Order.user_id, Line.product)
        .join(Order.lines)
        .where(Order.plain == "objects", Line.number == 2)
    )
    assert sorted(database.query_all(joined.order_by(Line.order_id)).all()) == [
        (order.user_id, order.lines[0].product) for order in orders
    ]
    other = aliased(Line)
    by_key = select(func.count()).select_from(Order).join(other, other.user_id == Order.user_id)
    assert database.query_all(by_key.where(Order.plain == "objects")).scalar_one() == 8
    page = database.query_page(query, size=3)
    assert [order.user_id for order in page.rows] == [order.user_id for order in orders[:3]]
    assert len(database.query_page(query, size=3, after=page.next).rows) == 1


def test_asyncio_gives_the_same(make_database: Callable[..., ShardedDatabase], one_database: Any) -> None:
    async def work() -> tuple[list[Any], Any, list[Any]]:
        database = make_database("asyncpg")
        query = select(Order.total).where(OURS).order_by(Order.total.desc(), Order.id)
        rows = list((await database.query_all_async(query.limit(20))).scalars())
        count = (
            await database.query_all_async(select(func.count(), func.avg(Order.total)).where(OURS))
        ).one()
        first = await database.query_page_async(query, size=15)
        second = await database.query_page_async(query, size=5, after=first.next)
        for shard in database._shards.values():
            await shard.aclose()  # type: ignore[attr-defined]
        return rows, count, [*first.rows, *second.rows]

    rows, count, pages = asyncio.run(work())
    with one_database.connect() as connection:
        by_total = select(PlainOrder.total).order_by(PlainOrder.total.desc(), PlainOrder.id)
        assert rows == pages == list(connection.execute(by_total.limit(20)).scalars())
        assert count[0] == ROWS


# ------------------------------------------------------------------ refused


REFUSED: dict[str, tuple[Any, str]] = {
    "group by": (select(Order.total, func.count()).group_by(Order.total), "GROUP BY"),
    "having": (select(func.count()).having(func.count() > 1), "HAVING"),
    "distinct": (select(Order.total).distinct(), "DISTINCT"),
    "count distinct": (select(func.count(distinct(Order.total))), "counts a value once for each shard"),
    "for update": (select(Order).with_for_update(), "FOR UPDATE"),
    "window": (select(Order.id, func.row_number().over(order_by=Order.id)), "window"),
    "filter": (select(func.sum(Order.total).filter(Order.total > 1)), "not known|FILTER"),
    "percentile": (select(func.percentile_cont(0.5).within_group(Order.total)), "WITHIN GROUP"),
    "unknown aggregate": (select(func.string_agg(Order.note, ",")), r"string_agg\(\) is not known"),
    "aggregate beside a column": (select(Order.total, func.max(Order.id)), "stand alone"),
    "aggregate with limit": (select(func.max(Order.id)).limit(1), "stand alone"),
    "aggregate in an expression": (select(func.max(Order.id) + 1), "in an expression"),
    "subquery": (select(Order).where(Order.id.in_(select(Line.order_id))), "subquery"),
    "exists": (select(Order).where(exists().where(Line.order_id == Order.id)), "subquery"),
    "scalar subquery": (select(select(func.max(Order.id)).scalar_subquery()), "subquery|one table"),
    "from subquery": (select(select(Order.id).subquery()), "subquery"),
    "cte": (select(select(Order.id).cte()), "a subquery or CTE is no sharded table"),
    "union": (union(select(Order.id), select(Line.order_id)), "only a select"),
    "text": (text("SELECT 1"), "only a select"),
    "text in where": (select(Order).where(text("total > 1")), "SQL written as text"),
    "literal column": (select(Order.id, literal_column("1")), "SQL written as text"),
    "order by text": (select(Order).order_by(text("total")), "not its name as text|text"),
    "text collation": (select(Order.id).order_by(Order.plain), r'\.collate\("C"\)'),
    "min of text": (select(func.min(Order.plain)), r'\.collate\("C"\)'),
    "two tables": (select(Order.id, Line.product), "joined by their shard key"),
    "join without key": (
        select(Order.id).join(Line, Line.order_id == Order.id),
        "must compare the bucket or the shard key",
    ),
    "table that is not sharded": (select(PlainOrder), "plain_orders is no sharded table"),
    "deep offset": (select(Order).limit(10).offset(20_000), "read pages"),
    "prefix": (select(Order).prefix_with("/* x */"), "prefix"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_query_whose_merged_result_would_be_wrong_is_refused(database: ShardedDatabase, name: str) -> None:
    statement, says = REFUSED[name]
    with pytest.raises(QueryRefusedError, match=says) as refused:
        database.query_all(statement)
    assert "\n" not in str(refused.value)


def test_text_in_c_collation_is_ordered(database: ShardedDatabase, one_database: Any) -> None:
    query = select(Order.plain).where(OURS).order_by(Order.plain.collate("C")).limit(3)
    assert list(database.query_all(query).scalars()) == ["compared"] * 3


def test_more_rows_than_may_be_held_are_refused(
    make_database: Callable[..., ShardedDatabase], one_database: Any
) -> None:
    database = make_database(max_rows=100)
    with pytest.raises(QueryRefusedError, match="more than 100 rows: give it a LIMIT, or read pages"):
        database.query_all(select(Order).where(OURS))
    assert len(database.query_all(select(Order).where(OURS).limit(100)).all()) == 100


@pytest.mark.parametrize(
    "token", ["x", "", "bnVsbA", "WyJpMSJd", "WyJpMSIsICJpMSIsICJzMSJd", "W" * 9000, "é"]
)
def test_token_that_is_none_is_refused(database: ShardedDatabase, token: str) -> None:
    query = select(Order.id).order_by(Order.total)
    if not token:
        assert database.query_page(query, size=1)
        return
    with pytest.raises(PageTokenError, match="no token of a page"):
        database.query_page(query, size=1, after=token)


@pytest.mark.parametrize(
    "query",
    [
        select(Order.id).order_by(Order.note),
        select(Order.id).limit(3),
        select(Order.id).order_by(func.abs(Order.total)),
    ],
)
def test_page_of_nullable_order_or_with_limit_is_refused(database: ShardedDatabase, query: Any) -> None:
    with pytest.raises(QueryRefusedError, match=r"never NULL|no LIMIT|NullType"):
        database.query_page(query, size=1)


def test_collections_are_loaded_by_their_own_statements(database: ShardedDatabase) -> None:
    query = select(Order).options(joinedload(Order.lines))
    for statement in (query, query.limit(1), query.order_by(Order.id)):
        with pytest.raises(QueryRefusedError, match=r"load them with selectinload\(\)"):
            database.query_all(statement)


# ------------------------------------------------------------------ while buckets move


@pytest.fixture
def counted(database: ShardedDatabase, shards: Shards) -> Any:
    """Twelve rows of twelve users under a name of their own, and a query that counts them."""
    name = f"counted {time.monotonic()}"
    users = [shards.user_on(shard) for shard in shards.urls for _ in range(3)]
    for user in users:
        database.run(user, lambda session, user=user: session.add(Order(user_id=user, plain=name)))
    return users, select(func.count()).where(Order.plain == name), name


@pytest.mark.guarantee(
    "a query over all shards has each row once", pattern="sharding", under="buckets that move"
)
def test_moved_bucket_is_neither_doubled_nor_dropped(
    make_database: Callable[..., ShardedDatabase], shards: Shards, counted: Any
) -> None:
    users, count, _ = counted
    database = make_database(lease_s=60)
    assert database.query_all(count).scalar_one() == 12

    def in_between() -> None:
        with pytest.raises(BucketMovedError):  # rather than 11 or 13
            database.query_all(count)

    place = shards.store.load().place(users[0])
    shards.move(place.bucket, "shard2", between=in_between)
    assert shards.home(users[0]) == ["shard1", "shard2"]  # the mover has left the rows behind
    assert database.query_all(count).scalar_one() == 12


def test_epoch_is_looked_at_once_a_query(shards: Shards) -> None:
    query = "EXPLAIN SELECT count(*) FROM orders WHERE total > 3 AND tenfold.require_epoch(1)"
    plan = "\n".join(row[0] for row in shards.execute("shard1", query))
    assert "One-Time Filter: tenfold.require_epoch" in plan


@pytest.mark.control("a query over all shards has each row once", "without epochs and ownership")
def test_the_control_without_epochs_a_row_is_doubled(
    database: ShardedDatabase, shards: Shards, counted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, count, _ = counted
    shards.move(shards.store.load().place(users[0]).bucket, "shard2")
    monkeypatch.setattr("tenfold.sharding.merge._is_owned", lambda source: true())
    monkeypatch.setattr(ShardQuery, "statement_for", lambda self, epoch: self.statement)
    assert database.query_all(count).scalar_one() == 13


def move_and_count(database: ShardedDatabase, shards: Shards, counted: Any, *, seconds: float) -> None:
    """Move buckets at random beside writers and counters; every count is right, no write is lost."""
    users, count, name = counted
    deadline = time.monotonic() + seconds
    written: list[int] = []
    errors: list[str] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                while time.monotonic() < deadline:
                    work()
            except Exception as error:
                errors.append(repr(error))

        return run

    def write() -> None:
        user = random.choice(users)

        def insert(session: Session) -> None:
            session.add(Order(user_id=user, plain=f"{name} more"))

        database.run(user, insert)
        written.append(user)

    def look() -> None:
        if (found := database.query_all(count).scalar_one()) != 12:
            errors.append(f"{found} in place of 12")

    moves: list[int] = []

    def move() -> None:
        bucket = shards.store.load().place(random.choice(users)).bucket
        shards.move(bucket, random.choice(list(shards.urls)))
        moves.append(bucket)

    def clean() -> None:
        for shard in shards.urls:
            shards.execute(
                shard,
                "DELETE FROM orders o USING tenfold.buckets b WHERE o.bucket = b.bucket AND NOT b.owned "
                f"AND o.plain LIKE '{name}%'",
            )

    threads = [threading.Thread(target=guarded(work)) for work in (write, write, look, look)]
    for thread in threads:
        thread.start()
    while time.monotonic() < deadline:
        move()
        clean()
        time.sleep(0.05)
    for thread in threads:
        thread.join(60)
    assert not errors, errors[:3]
    more = database.query_all(select(Order.user_id).where(Order.plain == f"{name} more")).scalars()
    assert Counter(more) == Counter(written)
    assert len(moves) > 5 and len(written) > 20


def test_soak_of_moves_writes_and_counts(database: ShardedDatabase, shards: Shards, counted: Any) -> None:
    move_and_count(database, shards, counted, seconds=4)


@pytest.mark.slow
def test_long_soak_of_moves_writes_and_counts(
    database: ShardedDatabase, shards: Shards, counted: Any
) -> None:
    move_and_count(database, shards, counted, seconds=60)


def test_late_directory_at_the_database_is_waited_for(
    make_database: Callable[..., ShardedDatabase], shards: Shards, counted: Any
) -> None:
    users, count, _ = counted
    database = make_database(lease_s=60)
    database.directory()
    user = users[-1]
    done = threading.Event()

    def move_slowly() -> None:
        shards.move(shards.store.load().place(user).bucket, "shard1", between=lambda: time.sleep(0.3))
        done.set()

    thread = threading.Thread(target=move_slowly)
    thread.start()
    eventually(lambda: shards.store.load().place(user).shard == "shard1")
    assert database.query_all(count).scalar_one() == 12
    thread.join()
    assert done.is_set()
