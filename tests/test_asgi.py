"""Path prefixes, route templates and plain answers, as every middleware uses them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tenfold.asgi import Message, is_below, longest_prefix, plain_answer, route_template, send_answer


@pytest.mark.parametrize(
    ("path", "prefix", "covered"),
    [
        ("/api", "/api", True),
        ("/api/x", "/api", True),
        ("/api", "/api/", True),
        ("/api/", "/api", True),
        ("/apis", "/api", False),
        ("/", "/", True),
        ("/anything", "/", True),
        ("/", "/api", False),
    ],
)
def test_a_prefix_covers_whole_segments(path: str, prefix: str, covered: bool) -> None:
    assert is_below(path, (prefix,)) is covered


def test_the_longest_prefix_wins() -> None:
    find = longest_prefix({"/": 1, "/api": 2, "/api/admin": 3}, otherwise=0)
    assert [find(path) for path in ("/x", "/api/x", "/api/admin/x", "/api/administrators")] == [1, 2, 3, 2]
    assert longest_prefix({"/api": 1}, otherwise=0)("/x") == 0


async def _text(request: Request) -> PlainTextResponse:
    return PlainTextResponse("x")


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/orders/7", "/orders/{id}"),
        ("/shops/9/orders/7", "/shops/{shop}/orders/{id}"),
        ("/missing", None),
    ],
)
def test_a_route_is_named_by_its_template(path: str, template: str | None) -> None:
    orders = [Route("/orders/{id:int}", _text)]
    app = Starlette(routes=[*orders, Mount("/shops/{shop}", routes=orders)])
    scope: dict[str, Any] = {
        "type": "http", "method": "GET", "path": path, "root_path": "", "headers": [], "query_string": b"",
    }  # fmt: skip

    async def call() -> None:
        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            pass

        await app(scope, receive, send)

    asyncio.run(call())
    assert route_template(scope, "") == template


def test_an_answer_to_head_has_the_length_and_no_body() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(send_answer(send, 503, b"busy", headers=[(b"retry-after", b"1")], head_only=True))
    start, body = sent
    assert start["status"] == 503
    assert dict(start["headers"])[b"content-length"] == b"4"
    assert dict(start["headers"])[b"retry-after"] == b"1"
    assert body["body"] == b""


def test_no_cache_stores_a_plain_answer() -> None:
    start, _ = plain_answer(404, b"Not Found")
    assert (b"cache-control", b"no-store") in start["headers"]
