"""The decorator and its cache, as a service uses them."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Query
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from sqlalchemy import ForeignKey, create_engine, delete, func, insert, select, text, update
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload
from sqlalchemy.pool import StaticPool

from tenfold.caching import QueryCache
from tenfold.errors import SettingsError
from tenfold.metrics import exposition
from tenfold.personal import note_personal_read
from tests.support.waiting import eventually


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list[Book]] = relationship(cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))


class AuthorOut(BaseModel):
    name: str
    books: list[str]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Author(id=1, name="Ada", books=[Book(id=1, title="Notes")]))
        session.commit()
    yield engine
    engine.dispose()


class Count:
    """Counts loads."""

    def __init__(self) -> None:
        self.loads = 0

    def __call__(self, value: Any = None) -> Any:
        self.loads += 1
        return value


# ------------------------------------------------------------------ signatures


def test_signature_is_kept_for_fastapi(make_cache: Callable[..., QueryCache], engine: Engine) -> None:
    cache, count = make_cache(), Count()

    def session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    @cache.query(ttl=60)
    def authors(
        session: Annotated[Session, Depends(session)], size: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> list[AuthorOut]:
        """All of them."""
        count()
        found = session.scalars(select(Author).limit(size).options(selectinload(Author.books)))
        return [AuthorOut(name=each.name, books=[book.title for book in each.books]) for each in found]

    app = FastAPI()
    app.get("/authors")(authors)
    assert list(inspect.signature(authors).parameters) == ["session", "size"]
    assert authors.__doc__ == "All of them."
    [parameter] = app.openapi()["paths"]["/authors"]["get"]["parameters"]
    assert parameter["name"] == "size" and parameter["schema"]["maximum"] == 100

    async def main() -> list[Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            answers = [await client.get("/authors") for _ in range(3)]
            answers.append(await client.get("/authors?size=0"))
            return [(answer.status_code, answer.json()) for answer in answers]

    *good, bad = asyncio.run(main())
    assert good == [(200, [{"name": "Ada", "books": ["Notes"]}])] * 3 and bad[0] == 422
    assert count.loads == 2, "the first load learns its tables, the second is kept"


def test_methods_static_methods_and_closures(make_cache: Callable[..., QueryCache]) -> None:
    cache = make_cache()

    class Shop:
        @cache.query(ttl=60, ignore=["self"])
        def price(self, number: int) -> int:
            return number

        @staticmethod
        @cache.query(ttl=60)
        def tax(number: int) -> int:
            return number + 1

    assert (Shop().price(1), Shop().price(2), Shop.tax(1)) == (1, 2, 2)

    def make(factor: int, name: str | None = None) -> Callable[[int], int]:
        @cache.query(ttl=60, name=name)
        def times(number: int) -> int:
            return factor * number

        return times

    make(2)
    with pytest.raises(
        SettingsError, match=r"another function is cached as .*times: give one of them a name="
    ):
        make(3)
    assert (make(4, "times 4")(1), make(5, "times 5")(1)) == (4, 5)


# ------------------------------------------------------------------ bad input


def returns_nothing_said(number: int):  # type: ignore[no-untyped-def]
    return number


def generates(number: int) -> Iterator[int]:
    yield number


async def generates_async(number: int) -> AsyncIterator[int]:
    yield number


def plain(number: int) -> int:
    return number


def returns_any(number: int) -> Any:
    return number


def returns_entity(number: int) -> Author:
    return Author()


@pytest.mark.parametrize(
    ("options", "function", "words"),
    [
        ({"ttl": -1}, plain, "the ttl of .*plain is -1: write seconds, above 0 and up to 7 days"),
        ({"ttl": 0}, plain, "above 0"),
        ({"ttl": 8 * 24 * 3600}, plain, "up to 7 days"),
        ({"negative_ttl": 0}, plain, "the negative_ttl of"),
        ({"tags": "products"}, plain, r"are one text: write tags=\['products'\]"),
        ({"tags": ["two words"]}, plain, "'two words' is no tag"),
        ({"tags": ["product:{id}"]}, plain, "'product:{id}' names 'id', which is no keyed parameter"),
        ({"tags": ["@own"]}, plain, "'@own' is no tag"),
        ({"tags": ["a{"]}, plain, "'a{' is no tag"),
        ({"tags": [1]}, plain, "'1' is no tag"),
        ({"tags": [""]}, plain, "'' is no tag"),
        ({"frozen": True, "returns": list[int]}, plain, "is frozen=True, but callers could change"),
        ({"ignore": ["nummer"]}, plain, "ignore= names 'nummer'"),
        ({}, returns_nothing_said, "has no return annotation"),
        ({}, returns_any, "returns Any, which says nothing"),
        ({}, returns_entity, "returns the ORM entity Author"),
        ({}, generates, "is a generator, which is consumed once: return a list"),
        ({}, generates_async, "is a generator"),
        ({}, len, "is no function"),
        ({}, staticmethod(plain), "is no function"),
    ],
)
def test_wrong_declarations_are_refused_in_one_sentence(
    options: dict[str, Any], function: Any, words: str
) -> None:
    cache = QueryCache(metrics=False)
    with pytest.raises(SettingsError, match=words) as caught:
        cache.query(**options)(function)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"redis": "http://127.0.0.1"}, "not the URL of a Redis"),
        ({"redis": "redis://:a/b@127.0.0.1"}, "in a password write / as %2F"),
        ({"redis": 7}, "takes a URL or a client of redis-py, no int"),
        ({"redis": "redis+sentinel://127.0.0.1:1"}, "behind Sentinel"),
        ({"redis": "redis+sentinel://127.0.0.1/name/x"}, "not the URL"),
        ({"shadow": 2}, "shadow is 2"),
        ({"prefix": ""}, "prefix is ''"),
        ({"prefix": "a b"}, "prefix is 'a b'"),
        ({"memory_bytes": 0}, "nothing could be kept"),
    ],
)
def test_wrong_caches_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        QueryCache(**arguments, metrics=False)
    assert "a/b" not in str(caught.value)


def test_client_that_decodes_is_refused() -> None:
    import redis

    with pytest.raises(SettingsError, match="without decode_responses"):
        QueryCache(redis.Redis(decode_responses=True), metrics=False)


def test_functions_that_are_not_cached_are_said(make_cache: Callable[..., QueryCache]) -> None:
    with pytest.raises(SettingsError, match="'plain' is not cached: decorate it"):
        make_cache().explain(plain)
    with pytest.raises(SettingsError, match="is no tag"):
        make_cache().invalidate("a b")


# ------------------------------------------------------------------ values


def test_callers_do_not_see_each_others_changes(make_cache: Callable[..., QueryCache]) -> None:
    cache = make_cache()

    @cache.query(ttl=60)
    def read() -> list[int]:
        return [1]

    for _ in range(5):
        found = read()
        assert found == [1]
        found.append(2)
    eventually(lambda: cache.explain(read)["in_memory"] or read() is None)
    read().append(3)
    assert read() == [1]


def test_frozen_values_are_shared(make_cache: Callable[..., QueryCache]) -> None:
    cache = make_cache()

    @cache.query(ttl=60, frozen=True)
    def read() -> tuple[int, ...]:
        return tuple(range(100))

    eventually(lambda: read() is read())


def test_none_has_a_lifetime_of_its_own() -> None:
    cache, count = QueryCache(metrics=False), Count()

    @cache.query(ttl=60, negative_ttl=0.1)
    def read(number: int) -> int | None:
        return count(number or None)

    read(0), read(0), read(1), read(1)
    assert count.loads == 2
    eventually(lambda: read(0) is None and count.loads == 3)
    read(1)
    assert count.loads == 3


def test_values_expire() -> None:
    cache, count = QueryCache(metrics=False), Count()

    @cache.query(ttl=0.1)
    def read() -> int:
        return int(count(1))

    read()
    eventually(lambda: read() == 1 and count.loads > 1)


def test_value_above_the_limit_is_returned_and_counted(
    make_cache: Callable[..., QueryCache], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(max_value_bytes=1000)

    @cache.query(ttl=60, name="large")
    def read() -> str:
        return "x" * 1001

    assert [read() for _ in range(3)] == ["x" * 1001] * 3
    assert cache.stats()["large"] == {"load": 3, "unstored": 3}
    assert caplog.text.count("what large returned was not cached: it has 1,004 bytes") == 1


def test_argument_of_another_type_is_a_call_without_the_cache(make_cache: Callable[..., QueryCache]) -> None:
    cache = make_cache()

    @cache.query(ttl=60, name="read")
    def read(number: int) -> str:
        return str(number)

    assert read(object()) == read(o := object()) or str(o)  # type: ignore[arg-type]
    assert cache.stats()["read"] == {"unkeyable": 2}


def test_errors_of_the_function_pass(make_cache: Callable[..., QueryCache]) -> None:
    cache, count = make_cache(), Count()

    @cache.query(ttl=60)
    def read(number: int) -> int:
        count()
        raise KeyError(number)

    for _ in range(2):
        with pytest.raises(KeyError, match="7"):
            read(7)
    assert count.loads == 2


def test_get_or_load(make_cache: Callable[..., QueryCache]) -> None:
    cache, count = make_cache(), Count()
    assert [cache.get_or_load(("a", 1), lambda: count({"a": [1]}), tags=["t"]) for _ in range(3)] == [
        {"a": [1]}
    ] * 3
    assert count.loads == 1
    cache.invalidate("t")
    cache.get_or_load(("a", 1), lambda: count({"a": [1]}), tags=["t"])
    assert count.loads == 2
    with pytest.raises(SettingsError, match="cannot be part of a cache key: use text, numbers"):
        cache.get_or_load(object(), lambda: 1)

    async def main() -> list[int]:
        async def load() -> int:
            count()
            return 7

        found = [await cache.get_or_load("b", load), await cache.get_or_load("b", load)]
        await cache.aclose()
        return found

    assert asyncio.run(main()) == [7, 7] and count.loads == 3


def test_key_of_ones_own(make_cache: Callable[..., QueryCache]) -> None:
    cache, count = make_cache(), Count()

    @cache.query(ttl=60, key=lambda user: user["id"], tags=["user"])
    def name(user: Any) -> str:
        return str(count(user["name"]))

    assert name({"id": 1, "name": "a"}) == name({"id": 1, "name": "b"}) == "a"
    assert name({"id": 2, "name": "b"}) == "b"


def test_warm_explain_and_drop(make_cache: Callable[..., QueryCache]) -> None:
    variant: ContextVar[str] = ContextVar("variant", default="a")
    cache, count = make_cache(vary=variant.get), Count()

    @cache.query(ttl=60, tags=["t:{number}"], name="read")
    def read(session: Session | None, number: int) -> int:
        return int(count(number))

    cache.warm(read, None, 1)
    assert (read(None, 1), count.loads) == (1, 1)
    cache.warm(read, None, 1)
    assert count.loads == 2
    explained = cache.explain(read, number=1)
    assert explained["tags"] == ["t:1"] and explained["key"].startswith("read:") and explained["ttl"] == 60
    assert count.loads == 2, "nothing is loaded"
    cache.drop_function(read)
    read(None, 1)
    assert count.loads == 3
    mark = variant.set("b")
    read(None, 1)
    variant.reset(mark)
    assert count.loads == 4
    cache.drop_variant("b")
    read(None, 1)
    assert count.loads == 4
    variant.set("b")
    read(None, 1)
    assert count.loads == 5


def test_shadow_reports_stale_hits() -> None:
    cache = QueryCache(shadow=1.0, metrics=False)
    values = iter([1, 1, 2])

    @cache.query(ttl=60, name="read")
    def read() -> int:
        return next(values)

    assert [read(), read(), read()] == [1, 1, 1]
    assert cache.stats()["read"] == {"load": 1, "memory": 2, "agreed": 1, "stale": 1}


def test_metrics() -> None:
    registry = CollectorRegistry()
    cache = QueryCache(registry=registry)

    @cache.query(ttl=60, name="read")
    def read() -> int:
        return 1

    read(), read()
    found = exposition(registry=registry).decode()
    assert 'tenfold_cache_lookups_total{function="read",outcome="memory"} 1.0' in found
    assert 'tenfold_cache_load_seconds_count{function="read"} 1.0' in found


# ------------------------------------------------------------------ personal values


def test_load_that_reads_the_current_user_is_not_kept(
    make_cache: Callable[..., QueryCache], caplog: pytest.LogCaptureFixture
) -> None:
    user: ContextVar[str] = ContextVar("user")

    def current_user() -> str:
        note_personal_read("current user")
        return user.get()

    def read_with(**options: Any) -> Callable[[], str]:
        @make_cache(**options).query(ttl=60, name="orders")
        def orders() -> str:
            return f"of {current_user()}"

        return orders

    orders, varied = read_with(), read_with(vary=current_user, prefix="varied:")
    for name in ("a", "b", "a"):
        user.set(name)
        assert orders() == varied() == f"of {name}"
    assert "it depends on the current user, which is no part of the key" in caplog.text
    with pytest.raises(SettingsError, match="orders cannot be cached: it depends on the current user"):
        read_with(debug=True)()


def test_session_of_a_visitor_is_personal(make_cache: Callable[..., QueryCache]) -> None:
    from tenfold.sessions import CookieSessions
    from tenfold.sessions import Session as VisitorSession

    visitor = VisitorSession(CookieSessions("0123456789abcdef0123456789abcdef"))
    cache = make_cache(debug=True)

    @cache.query(ttl=60)
    def read(number: int) -> str:
        return str(visitor.principal if number else visitor.get("language"))

    for number in (0, 1):
        with pytest.raises(SettingsError, match=r"depends on the (principal of the )?session"):
            read(number)


# ------------------------------------------------------------------ tables


def test_writes_of_sessions_invalidate_the_tables_that_loads_read(
    make_cache: Callable[..., QueryCache], engine: Engine
) -> None:
    cache, count = make_cache(), Count()

    @cache.query(ttl=60)
    def authors(session: Session) -> list[AuthorOut]:
        count()
        found = session.scalars(select(Author).options(selectinload(Author.books)))
        return [AuthorOut(name=each.name, books=[book.title for book in each.books]) for each in found]

    def changes(write: Callable[[Session], object], *, commit: bool = True) -> bool:
        """Return whether a write made the next call load."""
        with Session(engine) as session:
            authors(session)
        with Session(engine) as session:
            authors(session)
        before = count.loads
        with Session(engine) as session:
            write(session)
            session.commit() if commit else session.rollback()
        with Session(engine) as session:
            authors(session)
        return count.loads > before

    assert not changes(lambda session: session.get(Author, 1))
    assert changes(lambda session: session.add(Author(id=2, name="Bob")))
    assert changes(lambda session: setattr(session.get(Author, 2), "name", "Carl"))
    assert changes(lambda session: session.delete(session.get(Author, 2)))
    assert changes(lambda session: session.execute(update(Book).values(title="New")))
    assert changes(lambda session: session.execute(insert(Book), [{"title": "x", "author_id": 1}]))
    assert changes(lambda session: session.execute(delete(Book).where(Book.id > 1)))
    assert changes(lambda session: session.connection().execute(update(Author.__table__).values(name="D")))  # type: ignore[arg-type]
    assert changes(lambda session: session.bulk_update_mappings(Author, [{"id": 1, "name": "E"}]))  # type: ignore[arg-type]
    assert not changes(lambda session: session.execute(update(Book).values(title="y")), commit=False)
    assert cache.explain(authors)["tags"] == ["authors", "books"]


def test_session_that_is_never_closed_is_collected(engine: Engine) -> None:
    QueryCache(metrics=False)  # listens to sessions from now on
    session = Session(engine)
    session.execute(select(Author))
    found = weakref.ref(session)
    del session
    gc.collect()
    assert found() is None


def test_raw_sql_needs_tags(make_cache: Callable[..., QueryCache], engine: Engine) -> None:
    cache = make_cache()

    @cache.query(ttl=60)
    def count(session: Session) -> int:
        return session.scalar(select(func.count()).select_from(Author)) or 0

    with Session(engine) as session:
        assert (count(session), count(session)) == (1, 1)
    with Session(engine) as session:
        session.execute(text("insert into authors values (9, 'Z')"))
        session.commit()
    with Session(engine) as session:
        assert count(session) == 1
    with Session(engine) as session:
        session.execute(text("insert into authors values (10, 'Z')"))
        cache.invalidate("authors", session=session)
        session.commit()
    with Session(engine) as session:
        assert count(session) == 3


async def async_changes(cache: QueryCache, url: str) -> list[int]:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    @cache.query(ttl=60)
    async def count(session: AsyncSession) -> int:
        return await session.scalar(select(func.count()).select_from(Author)) or 0

    found = []
    for number in range(1, 4):
        async with AsyncSession(engine) as session:
            found += [await count(session)]
        async with AsyncSession(engine) as session:
            session.add(Author(id=number, name="x"))
            await session.commit()
    await engine.dispose()
    await cache.aclose()
    return found


def test_async_sessions_invalidate_tables(make_cache: Callable[..., QueryCache], tmp_path: Any) -> None:
    found = asyncio.run(async_changes(make_cache(), f"sqlite+aiosqlite:///{tmp_path}/test.db"))
    assert found == [0, 1, 2]


# ------------------------------------------------------------------ refresh


def test_refresh_in_the_background_uses_a_session_of_its_own(engine: Engine) -> None:
    used: list[Session] = []
    closed = threading.Event()

    @contextmanager
    def factory() -> Iterator[Session]:
        with Session(engine) as session:
            used.append(session)
            yield session
        closed.set()

    cache = QueryCache(session_factory=factory, metrics=False)

    @cache.query(ttl=1.0, tags=(), name="read")
    def read(session: Session) -> int:
        return session.scalar(select(func.count()).select_from(Author)) or 0

    with Session(engine) as own:
        read(own)
        own.add(Author(id=5, name="x"))
        own.commit()
        assert read(own) == 1
        eventually(lambda: read(own) == 2)
        assert closed.wait(5) and own not in used
    assert cache.stats()["read"]["refreshed"] >= 1
    cache.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tenfold-refresh")]


def test_refresh_in_asyncio() -> None:
    opened = 0

    @asynccontextmanager
    async def factory() -> AsyncIterator[str]:
        nonlocal opened
        opened += 1
        yield "own"

    cache, count = QueryCache(metrics=False), Count()

    @cache.query(ttl=0.5, tags=(), name="read", ignore=["session"], session_factory=factory)
    async def read(session: Any) -> int:
        await asyncio.sleep(0)
        count()
        return count.loads

    async def main() -> None:
        deadline = time.monotonic() + 10
        while await read("given") == 1 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await cache.aclose()

    asyncio.run(main())
    assert cache.stats()["read"]["refreshed"] >= 1
