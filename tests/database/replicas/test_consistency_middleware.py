"""A visitor's requests, one after the other, to several instances of an ASGI app."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route as Endpoint

from tenfold.database import ConsistencyMiddleware, DatabaseRouter, FreshnessLimits
from tests.database.conftest import KEY, Servers

MakeRouter = Callable[..., DatabaseRouter]

BUMP = "update counters set value = value + 1 where id = 90 returning value"
LOOK = "select value from counters where id = 90"


def service(router: DatabaseRouter, *, consistent: bool = True, **options: Any) -> Starlette:
    """Endpoints in the event loop and in threads, which write and read."""

    async def write(request: Request) -> JSONResponse:
        async with router.write() as session:
            return JSONResponse((await session.execute(text(BUMP))).scalar())

    def read(request: Request) -> JSONResponse:
        headers = {"cache-control": request.query_params.get("cache", "no-store")}
        with router.read() as session:
            return JSONResponse(session.execute(text(LOOK)).scalar(), headers=headers)

    async def read_async(request: Request) -> JSONResponse:
        async with router.read() as session:
            return JSONResponse((await session.execute(text(LOOK))).scalar())

    def late(request: Request) -> JSONResponse:
        def bump() -> None:
            with router.write() as session:
                session.execute(text(BUMP))

        return JSONResponse(None, background=BackgroundTask(bump))

    middleware = [Middleware(ConsistencyMiddleware, router=router, **options)] if consistent else []
    routes = [
        Endpoint("/", write, methods=["POST"]),
        Endpoint("/", read),
        Endpoint("/async", read_async),
        Endpoint("/late", late, methods=["POST"]),
    ]
    app = Starlette(routes=routes, middleware=middleware)
    app.state.router = router
    return app


class Visitor:
    """A browser: its requests go to the instances in turn, its cookies to all of them."""

    def __init__(self, *instances: Starlette, scheme: str = "http") -> None:
        self.cookies = httpx.Cookies()
        self._instances = itertools.cycle(instances)
        self._scheme = scheme

    async def send(self, method: str, path: str, **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(next(self._instances))
        address = f"{self._scheme}://shop"
        async with httpx.AsyncClient(transport=transport, base_url=address, cookies=self.cookies) as client:
            answer = await client.request(method, path, headers=headers)
            self.cookies = client.cookies
        return answer


def missed(servers: Servers, make_router: MakeRouter, *, consistent: bool) -> int:
    """The number of a visitor's reads that missed the write just made through another instance."""

    async def scenario() -> int:
        routers = [make_router(servers.urls, choice="random") for _ in range(3)]
        visitor = Visitor(*(service(router, consistent=consistent) for router in routers))
        found = 0
        for _ in range(15):
            written = (await visitor.send("POST", "/")).json()
            for path in ("/", "/async"):
                found += (await visitor.send("GET", path)).json() < written
        for router in routers:
            await router.aclose()
        return found

    with servers.hold_back(servers.replicas[0], 400):
        return asyncio.run(scenario())


@pytest.mark.guarantee(
    "every client sees its own writes through an ASGI app, and in its tasks",
    pattern="replicas",
    under="a replica held back, several instances",
)
def test_visitor_reads_own_write_on_every_instance(servers: Servers, make_router: MakeRouter) -> None:
    assert missed(servers, make_router, consistent=True) == 0


@pytest.mark.control("every client sees its own writes through an ASGI app, and in its tasks")
def test_the_control_without_the_middleware_reads_are_stale(
    servers: Servers, make_router: MakeRouter
) -> None:
    assert missed(servers, make_router, consistent=False) > 0


# ------------------------------------------------------------------ the cookie


@pytest.fixture
def local(tmp_path: Path, make_router: MakeRouter) -> DatabaseRouter:
    """A router without a server, for tests of tokens."""
    router = make_router((f"sqlite:///{tmp_path / 'shop.db'}", []))
    with router.write() as session:
        session.execute(text("create table counters (id integer primary key, value integer)"))
        session.execute(text("insert into counters values (90, 0)"))
    return router


def visit(app: Starlette, *requests: str, scheme: str = "http", **headers: str) -> list[httpx.Response]:
    async def scenario() -> list[httpx.Response]:
        visitor = Visitor(app, scheme=scheme)
        answers = [await visitor.send(*request.split(), **headers) for request in requests]
        await app.state.router.aclose()
        return answers

    return asyncio.run(scenario())


def test_visitor_without_a_token_gets_no_cookie(local: DatabaseRouter) -> None:
    (answer,) = visit(service(local), "GET /")
    assert "set-cookie" not in answer.headers


def test_the_cookie_is_for_this_site_and_no_script(local: DatabaseRouter) -> None:
    (plain,) = visit(service(local), "POST /")
    (secure,) = visit(service(local), "POST /", scheme="https")
    assert plain.headers["set-cookie"].startswith("tenfold_seen=")
    for attribute in ("Path=/", "Max-Age=900", "HttpOnly", "SameSite=Lax"):
        assert attribute in plain.headers["set-cookie"].split("; ")
    assert "Secure" not in plain.headers["set-cookie"]
    assert secure.headers["set-cookie"].endswith("; Secure")


def test_cookie_is_set_only_when_the_token_changed(local: DatabaseRouter) -> None:
    wrote, read = visit(service(local), "POST /", "GET /")
    assert "set-cookie" in wrote.headers
    assert "set-cookie" not in read.headers


def test_clients_without_cookies_may_use_a_header(local: DatabaseRouter) -> None:
    app = service(local, cookie=None, header="X-Seen")
    (answer,) = visit(app, "POST /")
    assert "set-cookie" not in answer.headers
    with local.consistency_context(answer.headers["x-seen"]) as seen:
        assert seen.token is not None


def test_of_cookie_and_header_the_greater_counts(local: DatabaseRouter) -> None:
    app = service(local, header="X-Seen")
    one, two = (visit(app, "POST /")[0].headers["x-seen"] for _ in range(2))
    tokens = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        tokens.append(local.token())

    async def scenario() -> None:
        for cookie, header in ((one, two), (two, one)):
            headers = [
                (b"cookie", f'a={{"b": [1]}}; c; tenfold_seen={cookie}'.encode()),
                (b"x-seen", header.encode()),
            ]
            middleware = ConsistencyMiddleware(look, router=local, header="X-Seen")
            await middleware({"type": "http", "headers": headers}, None, None)

    asyncio.run(scenario())
    assert tokens[0] == tokens[1] == two


@pytest.mark.guarantee(
    "tokens cannot be forged", pattern="replicas", under="altered, foreign and former keys"
)
@pytest.mark.parametrize("value", ["", "x", "A" * 62, "%00", "é", "=" * 5000])
def test_forged_cookie_is_ignored(local: DatabaseRouter, value: str) -> None:
    cookie = f"tenfold_seen={value}".encode("latin-1")
    seen = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append(local.token())

    middleware = ConsistencyMiddleware(look, router=local)
    asyncio.run(middleware({"type": "http", "headers": [(b"cookie", cookie)]}, None, None))
    assert seen == [None]


@pytest.mark.guarantee("tokens cannot be forged")
def test_token_of_other_keys_is_ignored(local: DatabaseRouter, make_router: MakeRouter) -> None:
    other = make_router(("sqlite://", []), keys="another key another key another key")
    (answer,) = visit(service(local, header="X-Seen"), "POST /")
    with other.consistency_context(answer.headers["x-seen"]) as seen:
        assert seen.token is None


def test_router_without_keys_sends_foreign_tokens_to_the_primary(
    servers: Servers, make_router: MakeRouter, caplog: Any
) -> None:
    one, two = (make_router(servers.urls, keys=None) for _ in range(2))
    with one.consistency_context():
        with one.write() as session:
            session.execute(text(BUMP))
        token = one.token()
    with two.consistency_context(token):
        with two.read() as session:
            assert not session.execute(text("select pg_is_in_recovery()")).scalar()
        servers.wait_for_replicas()
        with two.read() as session:  # the primary has told where it is: replicas will do again
            assert session.execute(text("select pg_is_in_recovery()")).scalar()
    assert "same keys" in caplog.text


def test_publicly_cached_answer_carries_no_cookie(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls)
    shared, own = visit(service(router), "GET /?cache=public,max-age=60", "GET /")
    assert "set-cookie" not in shared.headers
    assert "set-cookie" in own.headers  # what was read counts: reads are monotonic
    router = make_router(servers.urls, freshness=FreshnessLimits(monotonic=False))
    (own,) = visit(service(router), "GET /")
    assert "set-cookie" not in own.headers


def test_commit_after_the_answer_began_is_logged(local: DatabaseRouter, caplog: Any) -> None:
    late, in_time = (visit(service(local), f"POST {path}")[0] for path in ("/late", "/"))
    assert "set-cookie" not in late.headers
    assert "set-cookie" in in_time.headers
    assert caplog.text.count("after the answer had begun") == 1


@pytest.mark.guarantee("every client sees its own writes through an ASGI app, and in its tasks")
def test_a_task_reads_what_its_request_wrote(servers: Servers, make_router: MakeRouter) -> None:
    web, worker = make_router(servers.urls), make_router(servers.urls)
    with servers.hold_back(servers.replicas[0], 300):
        for _ in range(10):
            with web.consistency_context():
                with web.write() as session:
                    written = session.execute(text(BUMP)).scalar()
                payload = {"id": 90, "seen": web.token()}
            with worker.consistency_context(payload["seen"]), worker.read() as session:
                assert session.execute(text(LOOK)).scalar() == written


@pytest.mark.control("tokens cannot be forged", "a key that is known opens it")
def test_keys_rotate(make_router: MakeRouter) -> None:
    old, both = make_router(("sqlite://", [])), make_router(("sqlite://", []), keys=["n" * 20 + KEY, KEY])
    with old.consistency_context():
        with old.write() as session:
            session.execute(text("create table t (n integer)"))
        token = old.token()
    with both.consistency_context(token) as seen:
        assert seen.token is not None
