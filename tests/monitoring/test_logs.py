"""Structured logs: one line a record, with its ids and without secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tenfold.monitoring.logs import JsonFormatter, RequestIdMiddleware, current_request_id, set_tenant


class Lines(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, Lines]]:
    logger = logging.getLogger("tests.logs")
    handler = Lines(JsonFormatter(service="shop"))
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield logger, handler
    logger.removeHandler(handler)


def test_record_is_one_line_of_json(log: tuple[logging.Logger, Lines]) -> None:
    logger, handler = log
    logger.info("order %s\nis paid", 7, extra={"order_id": 7, "amount": 1.5, "who": ["a"]})
    (line,) = handler.lines
    found = json.loads(line)
    assert "\n" not in line
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.pop("time"))
    assert found == {
        "level": "info",
        "logger": "tests.logs",
        "message": "order 7\nis paid",
        "service": "shop",
        "order_id": 7,
        "amount": 1.5,
        "who": "['a']",
    }


@pytest.mark.guarantee(
    "no password is in a structured log", pattern="monitoring", under="messages, extras, tracebacks"
)
def test_secrets_are_left_out(log: tuple[logging.Logger, Lines]) -> None:
    logger, handler = log
    url = "postgresql://shop:hunter2@db/shop"
    try:
        raise ValueError(f"cannot connect to {url}")
    except ValueError:
        logger.exception(
            "failed: %s", url, extra={"api_key": "hunter2", "Authorization": "hunter2", "url": url}
        )
    assert "hunter2" not in handler.lines[0] and "ValueError" in json.loads(handler.lines[0])["traceback"]


def test_traceback_is_not_lost_with_a_password(log: tuple[logging.Logger, Lines]) -> None:
    logger, handler = log
    logger.info("postgresql://shop:hunter2@db/shop\n  @app.get\n  the end")
    assert json.loads(handler.lines[0])["message"] == "postgresql://***@db/shop\n  @app.get\n  the end"


@pytest.mark.control("no password is in a structured log", "with the standard formatter")
def test_the_control_standard_formatter_shows_the_password() -> None:
    record = logging.makeLogRecord({"msg": "failed: %s", "args": ("postgresql://shop:hunter2@db/shop",)})
    assert "hunter2" in logging.Formatter().format(record)


@given(
    st.text(max_size=50),
    st.dictionaries(st.from_regex(r"[a-z]{3,8}_x", fullmatch=True), st.text(max_size=30)),
)
def test_any_text_is_json(message: str, extra: dict[str, str]) -> None:
    record = logging.makeLogRecord({"msg": message, "args": (), **extra})
    line = JsonFormatter().format(record)
    assert "\n" not in line and isinstance(json.loads(line.encode())["message"], str)


def test_long_text_is_cut() -> None:
    line = JsonFormatter().format(logging.makeLogRecord({"msg": "x" * 100_000}))
    assert len(line) < 9_000 and json.loads(line)


# ------------------------------------------------------------------ requests


def ask(*headers: dict[str, str]) -> list[httpx.Response]:
    async def page(request: Request) -> PlainTextResponse:
        set_tenant(request.headers.get("x-tenant", ""))
        await asyncio.sleep(0.01)
        return PlainTextResponse(JsonFormatter().format(logging.makeLogRecord({"msg": "here"})))

    app = RequestIdMiddleware(Starlette(routes=[Route("/", page)]))

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            return list(await asyncio.gather(*(client.get("/", headers=each) for each in headers)))

    return asyncio.run(run())


def test_requests_at_once_have_ids_of_their_own() -> None:
    answers = ask({"x-tenant": "acme"}, {"x-tenant": "other"}, {})
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 3
    assert [answer.json()["request_id"] for answer in answers] == ids
    assert [answer.json().get("tenant") for answer in answers] == ["acme", "other", None]
    assert current_request_id() == ""


@pytest.mark.parametrize("given_id", ["abcdef0123456789", "a.b-c_d-e.f"])
def test_id_of_a_proxy_is_kept(given_id: str) -> None:
    assert ask({"X-Request-ID": given_id})[0].headers["x-request-id"] == given_id


@pytest.mark.parametrize("given_id", ["short", 'a"b\\c,d{e}f', "x" * 65, "1234567 8"])
def test_id_that_could_break_a_log_is_replaced(given_id: str) -> None:
    found = ask({"X-Request-ID": given_id})[0].headers["x-request-id"]
    assert found != given_id and re.fullmatch("[0-9a-f]{32}", found)


def test_span_of_opentelemetry_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake in place of the library, which is not installed: only its two calls are used."""
    context = types.SimpleNamespace(is_valid=True, trace_id=0xABC, span_id=0xDEF)
    span = types.SimpleNamespace(get_span_context=lambda: context)
    trace: Any = types.SimpleNamespace(get_current_span=lambda: span)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", trace)
    found = json.loads(JsonFormatter().format(logging.makeLogRecord({"msg": "x"})))
    assert (found["trace_id"], found["span_id"]) == ("0" * 29 + "abc", "0" * 13 + "def")
    context.is_valid = False
    assert "trace_id" not in json.loads(JsonFormatter().format(logging.makeLogRecord({"msg": "x"})))
