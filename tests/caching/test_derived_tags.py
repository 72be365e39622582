"""Tags from tables: what sessions write invalidates what loads have read."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, selectinload

from tenfold.caching import QueryCache
from tests.caching.support.library import Author, AuthorOut, Base, Book, Count, open_library


@pytest.fixture
def engine() -> Iterator[Engine]:
    with open_library() as engine:
        yield engine


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


def test_function_without_tables_is_warned_of(
    make_cache: Callable[..., QueryCache], engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    @make_cache().query(ttl=60, name="raw")
    def read(session: Session) -> int:
        return int(session.execute(text("select 1")).scalar_one())

    with Session(engine) as session:
        read(session), read(session)
    assert caplog.text.count("raw reads no table that SQLAlchemy shows") == 1


def test_session_with_an_engine_for_each_class_invalidates(
    make_cache: Callable[..., QueryCache], engine: Engine
) -> None:
    cache, count = make_cache(), Count()

    @cache.query(ttl=60, tags=["t"])
    def read() -> int:
        return int(count(1))

    read()
    with Session(binds={Author: engine, Book: engine}) as session:
        session.add(Author(id=7, name="Z"))
        cache.invalidate("t", session=session)
        session.commit()
    read()
    assert count.loads == 2


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
