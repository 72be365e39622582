"""Text that UTF-8 cannot encode (half of a surrogate pair, as JSON can bring it) is an error of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from tenfold.errors import SessionError, SettingsError, SignatureError, TenfoldError
from tenfold.hashing import HashRing, Jump, Rendezvous
from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.recorder import Recorder
from tenfold.metrics import MetricsMiddleware, exposition
from tenfold.overload.gcra import MemoryRates, Rate
from tenfold.overload.limiter import ConcurrencyLimiter
from tenfold.overload.ratelimiter import RateLimiter
from tenfold.sessions import CookieSessions, MemoryStore, ServerSessions, SessionMiddleware, current
from tenfold.sessions.session import Session
from tenfold.signing import Sealer, Signer, generate_key

HALF = "\ud800"
texts = st.text(st.characters(exclude_categories=[]) | st.just(HALF), max_size=8)


@given(texts, texts)
def test_every_text_is_stored_or_refused(key: str, value: str) -> None:
    async def run() -> None:
        backend = ServerSessions(MemoryStore())
        session = Session(backend)
        try:
            session[key] = {key: [value]}
            session.change(key, lambda present: [present, value])
        except SessionError:
            assert not (key + value).isascii()
            return
        token = session.rotate()
        await session.save()
        found = Session(backend, await backend.load(token))
        assert found[key] == [{key: [value]}, value]

    asyncio.run(run())


KEYED: list[Callable[[Session], object]] = [
    lambda session: session.__setitem__(HALF, 1),
    lambda session: session.__setitem__("a", HALF),
    lambda session: session.__setitem__("a", {HALF: 1}),
    lambda session: session.change(HALF, lambda n: n, 0),
    lambda session: session.change("a", lambda n: HALF),
    lambda session: session.change(7, lambda n: n, 0),
    lambda session: session.login(f"user {HALF}"),
    lambda session: session.login(7),
    lambda session: session.update({HALF: 1}),
    lambda session: session.setdefault(HALF, 1),
]


@pytest.mark.parametrize("write", KEYED)
@pytest.mark.parametrize("kind", ["server", "cookie"])
def test_session_refuses_the_text_and_stays_usable(write: Callable[[Session], object], kind: str) -> None:
    sealer = Sealer(generate_key(), purpose="sessions")
    session = Session(ServerSessions(MemoryStore()) if kind == "server" else CookieSessions(sealer))
    with pytest.raises(SessionError):
        write(session)
    assert HALF not in session
    assert session.get(HALF) is None
    session["a"] = 1
    asyncio.run(session.save())


def test_outside_of_requests_the_principal_is_refused() -> None:
    backend = ServerSessions(MemoryStore())
    for principal in (HALF, 7):
        for call in (
            backend.logout_everywhere,
            backend.devices,
            lambda who: backend.revoke_device(who, HALF),
        ):
            with pytest.raises(SessionError, match="a principal of a session"):
                asyncio.run(call(principal))
    assert asyncio.run(backend.revoke_device("me", HALF)) is False


def test_label_of_a_device_is_kept_with_question_marks() -> None:
    async def run() -> str:
        backend = ServerSessions(MemoryStore())
        session = Session(backend)
        session.login("me", device=f"phone {HALF}")
        await session.save()
        return (await backend.devices("me"))[0].label

    assert asyncio.run(run()) == "phone ?"


async def _write(request: Request) -> JSONResponse:
    key = (await request.json())["key"]
    try:
        (await current(request))[key] = 1
    except SessionError as error:
        return JSONResponse(str(error), 400)
    return JSONResponse("stored")


def test_endpoint_can_answer_the_refusal() -> None:
    async def run() -> list[int]:
        app = SessionMiddleware(Starlette(routes=[Route("/", _write, methods=["POST"])]), store=MemoryStore())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop") as client:
            bodies = [json.dumps({"key": key}) for key in (HALF, "é")]
            return [(await client.post("/", content=body)).status_code for body in bodies]

    assert asyncio.run(run()) == [400, 200]


@pytest.mark.parametrize("token", [HALF, f"{HALF}.{HALF}", "é" * 40, "\0", "a" * 22 + "." + HALF * 43])
def test_tokens_of_any_text_are_unknown(token: str) -> None:
    sealer = Sealer(generate_key(), purpose="sessions")
    for backend in (ServerSessions(MemoryStore()), CookieSessions(sealer)):
        assert not hasattr(asyncio.run(backend.load(token)), "record")
    with pytest.raises(SignatureError):
        Signer(generate_key()).verify(token, purpose="x")


async def _home(request: Request) -> PlainTextResponse:
    return PlainTextResponse("home")


def statuses(app: Any, times: int = 1) -> list[int]:
    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            return [(await client.get("/")).status_code for _ in range(times)]

    return asyncio.run(run())


@pytest.mark.parametrize("key", [HALF, 7, b"\xff", "", ("a", 1), 2.5])
def test_rate_limit_takes_any_key(key: object) -> None:
    app = Starlette(routes=[Route("/", _home)])
    limiter = RateLimiter(app, MemoryRates(), rate=Rate(0.001, 1), key=lambda scope: key)
    assert statuses(limiter, 2) == [200, 429]


def test_rate_limits_of_such_keys_differ() -> None:
    app = Starlette(routes=[Route("/", _home)])
    keys = iter(["\ud800", "\ud801", "?"])
    limiter = RateLimiter(app, MemoryRates(), rate=Rate(0.001, 1), key=lambda scope: next(keys))
    assert statuses(limiter, 3) == [200, 200, 200]


def test_limiter_takes_any_tenant() -> None:
    app = Starlette(routes=[Route("/", _home)])
    assert statuses(ConcurrencyLimiter(app, tenant=lambda scope: HALF, metrics=False)) == [200]


def test_metrics_of_any_route_can_be_read() -> None:
    registry = CollectorRegistry()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = type("Route", (), {"path": f"/{HALF}"})
        await PlainTextResponse("x")(scope, receive, send)

    assert statuses(MetricsMiddleware(app, registry=registry)) == [200]
    assert b'route="/?"' in exposition(registry=registry)


def test_probe_sends_any_path_and_statement(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.start()
    recorder.record_request(
        probe_protocol.RequestRecord(0.0), {"path": f"/{HALF}", "method": HALF}, root_path=""
    )
    recorder.record_statement(f"select '{HALF}' from x", None, 0.1)
    assert probe_protocol.pack(recorder.drain(1.0))


@given(texts)
def test_placements_refuse_what_they_cannot_hash(key: str) -> None:
    for placement in (HashRing(["a"]), Rendezvous(["a"]), Jump(["a"])):
        try:
            assert placement.get_node(key) == "a"
            assert placement.get_nodes(key, 1) == ["a"]
        except TenfoldError as error:
            assert isinstance(error, SettingsError)
            assert "surrogate" in str(error)


def test_keys_from_an_environment_that_is_not_utf8_sign() -> None:
    key = bytes(range(128, 168)).decode(errors="surrogateescape")
    assert Signer(key).verify(Signer(key).sign(b"x", purpose="p"), purpose="p") == b"x"
