"""The middleware with apps of Starlette and FastAPI, and bare ones."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from tenfold.edge import EdgeMiddleware, EdgePolicy, precondition, private, public
from tenfold.edge.decision import choose_variants

BODY = "hello " * 300
RULES = {
    "/": public(ttl=60).ab("hero", A=50, B=50),
    "/page": public(ttl=300, swr=60, tags=["catalogue"], vary=["Accept-Language"]),
    "/user": private(ttl=5),
    "/stream": public(ttl=5),
    "/file": public(ttl=5),
    "/static/**": public(ttl=5),
    "/country": public(ttl=5).geo(CN="https://cn.example.com"),
    "/api/inner": public(ttl=7),
}


async def page(request: Request) -> Response:
    return PlainTextResponse(BODY, headers={"X-Request-ID": "1", "Content-Location": "/page"})


async def root(request: Request) -> Response:
    return JSONResponse(request.state.variants)


async def stream(request: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        for number in range(3):
            yield f"{number}\n"

    return StreamingResponse(parts(), media_type="text/plain")


async def events(request: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        yield "data: 1\n\n"

    return StreamingResponse(parts(), media_type="text/event-stream")


async def versioned(request: Request) -> Response:
    request.app.state.worked += request.method == "GET"
    if status := precondition(request, etag='"v1"', last_modified=1_700_000_000):
        return Response(status_code=status)
    request.app.state.worked += 10
    return PlainTextResponse("v1")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


def make(tmp_path: Path, *inner: Middleware, **options: Any) -> TestClient:
    (tmp_path / "file.txt").write_text(BODY)
    options.setdefault("policy", EdgePolicy(RULES, country_header="CF-IPCountry"))

    async def file(request: Request) -> Response:
        return FileResponse(tmp_path / "file.txt")

    app = Starlette(
        routes=[
            Route("/", root),
            Route("/page", page, methods=["GET", "POST"]),
            Route("/user", page),
            Route("/other", page),
            Route("/stream", stream),
            Route("/events", events),
            Route("/file", file),
            Route("/country", page),
            Route("/versioned", versioned, methods=["GET", "PUT"]),
            Route("/error", lambda request: PlainTextResponse("no", 500)),
            Mount("/static", StaticFiles(directory=tmp_path)),
            Mount("/api", routes=[Route("/inner", page)]),
            WebSocketRoute("/socket", echo),
        ],
        middleware=[Middleware(EdgeMiddleware, **options), *inner],
    )
    app.state.worked = 0
    return TestClient(app, headers={"Accept-Encoding": "identity"})


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return make(tmp_path)


def test_rule_is_in_the_headers(client: TestClient) -> None:
    answer = client.get("/page")
    assert answer.text == BODY
    assert answer.headers["cache-control"] == "public, max-age=0, s-maxage=300"
    assert answer.headers["cdn-cache-control"] == "max-age=300, stale-while-revalidate=60"
    assert answer.headers["cache-tag"] == "catalogue"
    assert answer.headers["vary"] == "Accept-Encoding, Accept-Language"
    assert client.get("/other").headers["cache-control"] == "private, no-store"
    assert client.get("/error").headers["cache-control"] == "private, no-store"
    assert client.get("/api/inner").headers["cache-control"] == "public, max-age=7"
    assert client.post("/page").headers["cache-control"] == "no-store"
    assert client.get("/none").headers["cache-control"] == "private, no-store"


def test_not_modified_has_the_headers_of_the_answer(client: TestClient) -> None:
    whole = client.get("/page")
    answer = client.get("/page", headers={"If-None-Match": whole.headers["etag"]})
    assert (answer.status_code, answer.content) == (304, b"")
    for name in ("cache-control", "cdn-cache-control", "vary", "etag", "content-location", "x-request-id"):
        assert answer.headers[name] == whole.headers[name], name
    assert not {"content-length", "content-type", "content-encoding"} & set(answer.headers)
    assert client.get("/page", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get("/page", headers={"If-Match": '"other"'}).status_code == 412


def test_head_has_no_tag_of_an_empty_body(client: TestClient) -> None:
    answer = client.head("/page")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers.get("etag") != client.get("/stream").headers.get("etag", "none")
    assert answer.headers["cache-control"] == client.get("/page").headers["cache-control"]


def test_every_encoding_has_a_tag_of_its_own(client: TestClient) -> None:
    tags = {}
    for encoding in ("identity", "gzip", "br", "gzip;q=0, identity"):
        answer = client.get("/page", headers={"Accept-Encoding": encoding})
        assert answer.text == BODY
        assert "Accept-Encoding" in answer.headers["vary"]
        tags[encoding] = answer.headers["etag"], answer.headers.get("content-encoding")
    assert [encoding for _, encoding in tags.values()] == [None, "gzip", "br", None]
    assert len({tag for tag, _ in tags.values()}) == 3
    tag, _ = tags["gzip"]
    known = {"If-None-Match": tag, "Accept-Encoding": "gzip"}
    assert client.get("/page", headers=known).status_code == 304
    assert client.get("/page", headers=known | {"Accept-Encoding": "identity"}).status_code == 200


def test_tag_that_another_middleware_shares_between_encodings_is_weak(tmp_path: Path) -> None:
    client = make(tmp_path, Middleware(GZipMiddleware, minimum_size=100))
    answer = client.get("/file", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip" and answer.text == BODY
    assert answer.headers["etag"].startswith('W/"')


def test_files_are_not_sent_again(client: TestClient) -> None:
    for path in ("/file", "/static/file.txt"):
        whole = client.get(path)
        assert whole.text == BODY
        for condition in ("etag", "last-modified"):
            name = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}[condition]
            answer = client.get(path, headers={name: whole.headers[condition]})
            assert (answer.status_code, answer.content) == (304, b""), (path, condition)
            assert answer.headers["cache-control"] == "public, max-age=5"
        part = client.get(path, headers={"Range": "bytes=0-4"})
        assert (part.status_code, part.text) == (206, "hello")


def test_streams_events_and_sockets_are_left_alone(client: TestClient) -> None:
    answer = client.get("/stream", headers={"Accept-Encoding": "gzip"})
    assert answer.text == "0\n1\n2\n" and "etag" not in answer.headers
    assert answer.headers["cache-control"] == "public, max-age=5"
    assert "cache-control" not in client.get("/events").headers
    with client.websocket_connect("/socket") as socket:
        assert socket.receive_text() == "hello"


def test_parts_of_a_stream_are_sent_as_they_come() -> None:
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(2):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": number == 0})
            assert len(sent) == number + 2

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/stream", "headers": []}
    asyncio.run(EdgeMiddleware(app, policy=EdgePolicy({"/stream": public(ttl=5)}))(scope, None, send))  # type: ignore[arg-type]


def test_headers_of_an_event_stream_do_not_wait_for_the_first_event() -> None:
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        assert sent == ["http.response.start"]

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/events", "headers": []}
    asyncio.run(EdgeMiddleware(app, policy=EdgePolicy({}))(scope, None, send))  # type: ignore[arg-type]


def test_precondition_before_the_work(client: TestClient) -> None:
    known = client.get("/versioned")
    assert (known.headers["etag"], client.app.state.worked) == ('"v1"', 11)
    assert client.get("/versioned", headers={"If-None-Match": '"v1"'}).status_code == 304
    assert client.app.state.worked == 12  # not 22
    assert client.put("/versioned", headers={"If-Match": '"v0"'}).status_code == 412
    assert client.put("/versioned", headers={"If-Match": '"v1"'}).status_code == 200


def test_without_an_edge_variants_are_for_one_browser(client: TestClient) -> None:
    first = client.get("/")
    cookie = first.headers["set-cookie"]
    assert cookie.startswith("__Host-edge-visitor=") and "Secure; HttpOnly" in cookie
    assert first.headers["cache-control"] == "private, max-age=60"
    visitor = cookie.partition("=")[2].partition(";")[0]
    again = client.get("/", headers={"Cookie": f"__Host-edge-visitor={visitor}"})
    assert again.json() == first.json() == choose_variants(RULES["/"], visitor)
    assert "set-cookie" not in again.headers
    forged = client.get("/", headers={"Cookie": "__Host-edge-visitor=a", "X-Variant": "hero=C"})
    assert forged.json()["hero"] in ("A", "B")


def test_behind_an_edge_its_variants_count(tmp_path: Path) -> None:
    client = make(tmp_path, behind_edge=True)
    answer = client.get("/", headers={"X-Variant": "hero=B,other=1"})
    assert answer.json() == {"hero": "B"}
    assert answer.headers["cache-control"] == "public, max-age=60"
    assert client.get("/", headers={"X-Variant": "hero=C"}).json() == {}


def test_visitors_of_a_country_are_redirected(client: TestClient) -> None:
    answer = client.get("/country", headers={"CF-IPCountry": "CN"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (302, "https://cn.example.com")
    assert answer.headers["cache-control"] == "private, no-store"
    assert client.get("/country", headers={"CF-IPCountry": "DE"}).status_code == 200
    assert client.get("/country", headers={"X-Country": "CN"}).status_code == 200


@pytest.mark.parametrize("raw", [None, b"/prefix/page", b"/page"])
def test_rules_are_for_the_path_that_clients_send(raw: bytes | None) -> None:
    policy = EdgePolicy({"/prefix/page": public(ttl=9)})

    async def ask() -> httpx.Headers:
        started: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("x")(scope, receive, send)

        async def send(message: Any) -> None:
            started.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/prefix/page",
            "root_path": "/prefix",
            "headers": [],
        }
        if raw is not None:
            scope["raw_path"] = raw
        await EdgeMiddleware(app, policy=policy)(scope, None, send)  # type: ignore[arg-type]
        return httpx.Headers(started[0]["headers"])

    assert asyncio.run(ask())["cache-control"] == "public, max-age=9"


HEADERS = ["if-match", "if-none-match", "if-modified-since", "if-range", "accept-encoding", "cookie"]
HEADERS += ["cache-control", "authorization", "x-variant", "cf-ipcountry", "range", "accept"]


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(HEADERS),
        st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=30),
    ),
    st.sampled_from(["/", "/page", "/user", "/other", "/country"]),
)
def test_no_header_of_a_client_is_an_error_or_shares_what_is_private(
    fuzzed_client: TestClient, headers: dict[str, str], path: str
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = fuzzed_client.get(path, headers=raw, follow_redirects=False)
    assert answer.status_code in (200, 302, 304, 412)
    control = answer.headers["cache-control"]
    if path in ("/user", "/other") or "authorization" in headers:
        assert "public" not in control and "s-maxage" not in control


@pytest.fixture(scope="module")
def fuzzed_client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return make(tmp_path_factory.mktemp("fuzzed"))


def test_two_policies_in_one_app_do_not_meet(tmp_path: Path) -> None:
    inner = Middleware(EdgeMiddleware, policy=EdgePolicy({"/page": public(ttl=2)}), compress=False)
    client = make(tmp_path, inner)
    assert client.get("/page").headers["cache-control"] == "public, max-age=0, s-maxage=2"


def test_compressed_answers_are_whole(client: TestClient) -> None:
    with client.stream("GET", "/page", headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert gzip.decompress(raw).decode() == BODY
    assert int(answer.headers["content-length"]) == len(raw)
