"""The decorator and its cache, as a service uses them."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Query
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, field_validator
from sqlalchemy import func, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, selectinload

from tenfold.caching import QueryCache
from tenfold.errors import SettingsError
from tenfold.metrics import exposition
from tenfold.reads import PERSONAL
from tests.caching.support.library import Author, AuthorOut, Count, open_library
from tests.support.waiting import eventually


@pytest.fixture
def engine() -> Iterator[Engine]:
    with open_library() as engine:
        yield engine


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
    with pytest.raises(SettingsError, match=r"cannot be part of a cache key \(object\): use text, numbers"):
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


def test_vary_that_cannot_be_keyed_is_said(make_cache: Callable[..., QueryCache]) -> None:
    cache = make_cache(vary=object)
    with pytest.raises(SettingsError, match=r"vary= returned a value that cannot be .*: let it return"):
        cache.get_or_load("a", lambda: 1)


class Fussy(BaseModel):
    """A model whose validator takes a value today and not tomorrow."""

    name: str

    @field_validator("name")
    @classmethod
    def _is_allowed(cls, name: str) -> str:
        if name in FORBIDDEN:
            raise ValueError("not any more")
        return name


FORBIDDEN: set[str] = set()


@pytest.mark.parametrize("memory_bytes", [0, 1_000_000])
def test_value_that_does_not_validate_any_more_is_a_miss(
    make_cache: Callable[..., QueryCache], memory_bytes: int
) -> None:
    cache, count = make_cache(memory_bytes=memory_bytes), Count()
    kept = Fussy(name="a")

    @cache.query(ttl=60, tags=())
    def read() -> Fussy:
        return Fussy.model_validate(count(kept))

    read()
    if memory_bytes:
        eventually(lambda: cache.explain(read)["in_memory"] or not read())
    loads = count.loads
    FORBIDDEN.add("a")
    try:
        assert read() == kept and count.loads > loads
    finally:
        FORBIDDEN.clear()


def test_tags_may_have_any_text_of_a_user(make_cache: Callable[..., QueryCache]) -> None:
    cache, count = make_cache(), Count()

    @cache.query(ttl=60, tags=["search:{words}"])
    def search(words: str) -> int:
        return int(count(len(words)))

    for words in ("two words", "\n{}@", "x" * 10_000, "\ud800"):
        before = count.loads
        assert search(words) == search(words) == len(words) and count.loads == before + 1
        cache.invalidate(f"search:{words}")
        search(words)
        assert count.loads == before + 2
    varied = make_cache(vary=lambda: "\ud800", prefix="varied:")
    assert varied.get_or_load("a", lambda: count(1)) == varied.get_or_load("a", lambda: count(2)) == 1


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
        PERSONAL.add("current user")
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
        with pytest.raises(SettingsError, match=r"depends on the session"):
            read(number)


# ------------------------------------------------------------------ refresh


def test_refresh_in_the_background_uses_a_session_of_its_own(engine: Engine) -> None:
    used: list[Session] = []
    closed = threading.Event()
    others = set(threading.enumerate())  # such as those of a cache that is not collected yet

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
    mine = set(threading.enumerate()) - others
    assert not [thread for thread in mine if thread.name.startswith("tenfold-refresh")]


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
