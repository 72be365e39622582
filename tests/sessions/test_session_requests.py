"""Round trips of a request, what is saved and when, and the headers of its response."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request, WebSocket

from tenfold.errors import SessionEndedError, SessionError, SessionSizeError, SettingsError
from tenfold.sessions import MemoryStore, ServerSessions, Session, SessionMiddleware, current
from tests.sessions.support.client import Client
from tests.sessions.support.service import Clock, WatchedStore, service

COOKIE = "__Host-session"


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture(params=["inside", "outside"])
def client(store: WatchedStore, request: pytest.FixtureRequest) -> Client:
    return Client(service(store=store, outside=request.param == "outside"))


def costs(store: WatchedStore, client: Client, path: str) -> list[str]:
    before = len(store.operations)
    assert client.get(path).status == 200
    return store.operations[before:]


# ------------------------------------------------------------------ round trips


@pytest.mark.guarantee("a read costs one GET, a request without session access nothing")
def test_request_without_session_access_costs_no_round_trip(store: WatchedStore, client: Client) -> None:
    client.get("/put?a=1")
    assert costs(store, client, "/untouched") == []
    response = client.get("/untouched")
    assert {name for name, _ in response.headers} == {"content-length", "content-type"}


def test_reading_requests_write_nothing(store: WatchedStore, client: Client) -> None:
    client.get("/put?a=1")
    assert [operation for _ in range(10) for operation in costs(store, client, "/show")] == ["read"] * 10
    assert not client.get("/show").header("set-cookie")


def test_read_without_token_costs_no_round_trip(store: WatchedStore, client: Client) -> None:
    assert costs(store, client, "/show") == []
    assert client.cookies == {}


def test_write_costs_one_read_and_one_write(store: WatchedStore, client: Client) -> None:
    assert costs(store, client, "/put?a=1") == ["create"]
    assert costs(store, client, "/put?a=2") == ["read", "replace"]
    assert costs(store, client, "/put?a=2") == ["read"]  # the value is the same


def test_concurrent_access_in_one_request_shares_one_read(store: WatchedStore, client: Client) -> None:
    client.get("/put?a=1")
    assert costs(store, client, "/twice") == ["read"]
    assert client.get("/twice").json is True


def test_nested_edits_are_saved_and_reads_are_not(store: WatchedStore, client: Client) -> None:
    client.get("/nested")
    client.get("/nested")
    assert client.get("/show").json["data"]["cart"] == [{"n": 3}, {"n": 1}]
    assert costs(store, client, "/show") == ["read"]


# ------------------------------------------------------------------ expiry


def test_reads_refresh_the_expiry_once_in_a_tenth_of_the_idle_time(store: WatchedStore) -> None:
    clock = Clock()
    client = Client(service(sessions=ServerSessions(store, idle_s=1000, clock=clock)))
    client.get("/put?a=1")
    store.operations.clear()
    for _ in range(100):
        clock.now += 10
        client.get("/show")
    assert store.operations.count("replace") == 10
    assert store.operations.count("read") == 100


@pytest.mark.control("wall clock steps neither end nor restore sessions")
def test_idle_and_absolute_expiry_end_a_session() -> None:
    clock = Clock()
    client = Client(
        service(sessions=ServerSessions(MemoryStore(clock=clock), idle_s=100, absolute_s=1000, clock=clock))
    )
    client.get("/put?a=1")
    clock.now += 101
    assert client.get("/show").json["data"] == {}
    client.get("/put?a=1")
    for _ in range(11):
        assert client.get("/show").json["data"] == {"a": "1"}
        clock.now += 90
    clock.now += 10
    assert client.get("/show").json["data"] == {}


@pytest.mark.guarantee(
    "wall clock steps neither end nor restore sessions", pattern="sessions", under="steps of two hours"
)
def test_wall_clock_steps_neither_end_nor_restore_sessions() -> None:
    real, wall = Clock(), Clock()
    client = Client(
        service(sessions=ServerSessions(MemoryStore(clock=real), idle_s=100, absolute_s=10_000, clock=wall))
    )
    client.get("/put?a=1")
    for step in (7200, -7200, -3600, 3600):
        wall.now += step
        assert client.get("/show").json["data"] == {"a": "1"}
    real.now += 101
    wall.now -= 3600
    assert client.get("/show").json["data"] == {}


# ------------------------------------------------------------------ saved before the response


@pytest.mark.guarantee("changes are stored before the response starts", pattern="sessions")
def test_changes_are_stored_before_the_response_starts(store: WatchedStore) -> None:
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = await current(scope)
        session["a"] = 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        async def send(message: Any) -> None:
            order.extend([*store.operations, message["type"]])
            store.operations.clear()

        scope = {"type": "http", "path": "/", "headers": []}
        await SessionMiddleware(app, store=store)(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(run())
    assert order == ["create", "http.response.start", "http.response.body"]


@pytest.mark.control("changes are stored before the response starts")
def test_change_after_the_response_began_is_an_error(client: Client) -> None:
    client.get("/put?a=1")
    client.get("/stream")
    assert isinstance(client.raised, SessionError)
    assert client.get("/show").json["data"] == {"a": "1"}


def test_background_task_must_save_explicitly(client: Client) -> None:
    client.get("/background")
    assert isinstance(client.raised, SessionError)
    assert client.get("/show").json["data"] == {"before": 1}
    client.get("/background?save")
    assert client.raised is None
    assert client.get("/show").json["data"] == {"before": 1, "after": 1}


def test_failed_request_saves_only_its_logout(client: Client) -> None:
    client.get("/put?a=1")
    client.get("/fail")
    assert isinstance(client.raised, RuntimeError)
    assert client.get("/show").json["data"] == {"a": "1"}
    client.get("/fail?logout")
    assert client.get("/show").json["data"] == {}


def test_client_error_response_saves_the_session(client: Client) -> None:
    assert [client.get("/refuse").status for _ in range(2)] == [403, 403]
    assert client.get("/show").json["data"] == {"refused": 2}


def test_write_to_a_session_that_ended_meanwhile_is_a_409(store: WatchedStore) -> None:
    sessions = ServerSessions(store)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        session = await current(scope)
        if scope["path"] == "/late":
            await store.revoke(session.handle or "", ttl_s=60)
        session["a"] = session.get("a", 0) + 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = Client(SessionMiddleware(app, sessions=sessions))
    assert client.get("/").status == 200
    cookies = dict(client.cookies)
    response = client.get("/late")
    assert (response.status, client.raised, client.cookies) == (409, None, cookies)


# ------------------------------------------------------------------ sizes and values


@pytest.mark.parametrize("size", [16_400, 100_000])
def test_oversized_session_is_a_413_and_saves_nothing(client: Client, size: int) -> None:
    response = client.get(f"/large?bytes={size}")
    assert response.status == 413
    assert client.cookies == {}


@pytest.mark.parametrize("size", [16_400, 100_000])
def test_size_error_names_the_largest_key(size: int) -> None:
    session = Session(ServerSessions(MemoryStore()))
    with pytest.raises(SessionSizeError, match="'large' with"):
        session["large"] = "x" * size
    assert dict(session) == {}


def test_many_small_keys_exceed_the_limit_too() -> None:
    session = Session(ServerSessions(MemoryStore(), max_bytes=1000))
    with pytest.raises(SessionSizeError):
        session.update({str(number): number for number in range(1000)})


@pytest.mark.parametrize(
    "value", [(1, 2), {1: "a"}, {"a": {1}}, b"x", float("nan"), object(), "\ud800", {"when": Clock()}]
)
def test_value_that_json_would_change_is_refused_when_set(value: Any) -> None:
    session = Session(ServerSessions(MemoryStore()))
    with pytest.raises(SessionError, match=r"session\['key'\]"):
        session["key"] = value


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "", "é", [], {}, {"a": [{"b": None}]}])
def test_json_values_are_preserved(value: Any) -> None:
    async def run() -> Any:
        sessions = ServerSessions(MemoryStore())
        session = Session(sessions)
        session["key"] = value
        await session.save()
        return dict(Session(sessions, await sessions.load(session.pending_token or "")))

    assert asyncio.run(run()) == {"key": value}


# ------------------------------------------------------------------ frameworks


def user(session: Annotated[Session, Depends(current)]) -> str | None:
    return session.principal


def fastapi_service(store: MemoryStore) -> SessionMiddleware:
    app = FastAPI()

    @app.get("/sync")
    def sync(session: Annotated[Session, Depends(current)], who: Annotated[str | None, Depends(user)]) -> Any:
        session.change("n", lambda n: n + 1, 0)
        return [who, session["n"]]

    @app.get("/async")
    async def asynchronous(session: Annotated[Session, Depends(current)]) -> Any:
        session.login("ann")
        return session["n"]

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, session: Annotated[Session, Depends(current)]) -> None:
        await websocket.accept()
        await websocket.send_json([session.principal])

    return SessionMiddleware(app, store=store)


def test_fastapi_dependency(store: WatchedStore) -> None:
    client = Client(fastapi_service(store))
    assert client.get("/sync").json == [None, 1]
    store.operations.clear()
    assert client.get("/sync").json == [None, 2]
    assert store.operations == ["read", "replace"]
    assert client.get("/async").json == 2
    assert client.get("/sync").json == ["ann", 3]
    assert client.websocket("/socket")[1]["text"] == '["ann"]'


def test_sync_endpoint_of_starlette(client: Client) -> None:
    assert [client.get("/blocking").json["blocking"] for _ in range(3)] == [1, 2, 3]


def test_websocket_gets_its_cookie_with_the_handshake_and_saves_explicitly(client: Client) -> None:
    sent = client.websocket("/chat", "one", "two")
    assert sent[0]["type"] == "websocket.accept"
    assert client.raised is None
    assert client.get("/show").json["data"] == {"joined": True, "last": "two"}
    client.websocket("/chat", "three", "forget")
    assert isinstance(client.raised, SessionError)
    assert client.get("/show").json["data"]["last"] == "three"


def test_error_without_the_middleware() -> None:
    with pytest.raises(SessionError, match="SessionMiddleware"):
        asyncio.run(current({"type": "http"}))


@pytest.mark.parametrize("options", [{}, {"store": MemoryStore(), "sessions": ServerSessions(MemoryStore())}])
def test_contradicting_options_are_refused(options: Any) -> None:
    with pytest.raises(SettingsError):
        service(outside=True, **options)


@pytest.mark.parametrize(
    "options", [{"idle_s": 0}, {"idle_s": 10, "absolute_s": 5}, {"max_bytes": 10}, {"cache_ms": -1}]
)
def test_invalid_limits_are_refused(options: Any) -> None:
    with pytest.raises(SettingsError):
        ServerSessions(MemoryStore(), **options)


# ------------------------------------------------------------------ secrets and caches


@pytest.mark.guarantee(
    "tokens appear in no log, repr or error, and not in the store",
    pattern="sessions",
    under="debug logs, an unavailable store",
)
def test_tokens_appear_in_no_log_repr_or_error(
    store: WatchedStore, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = client.get("/login?who=ann").json
    secret = token.partition(".")[2]
    client.get("/stream")
    raised = repr(client.raised)
    store.break_down()
    assert client.get("/show").status == 503
    session = Session(ServerSessions(MemoryStore()))
    fresh = session.login("ann").partition(".")[2]
    ended = repr(SessionEndedError("x")) + repr(session) + repr(session._changes())
    assert caplog.records
    assert secret not in caplog.text + raised
    assert fresh not in ended


@pytest.mark.control("tokens appear in no log, repr or error, and not in the store")
def test_the_control_logged_token_is_found(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    load = ServerSessions.load

    async def careless(self: ServerSessions, token: str) -> Any:
        logging.getLogger("tenfold.sessions").debug("loading %s", token)
        return await load(self, token)

    monkeypatch.setattr(ServerSessions, "load", careless)
    secret = client.get("/login?who=ann").json.partition(".")[2]
    client.get("/show")
    assert secret in caplog.text


@pytest.mark.guarantee("tokens appear in no log, repr or error, and not in the store")
def test_store_has_only_a_digest_of_the_secret() -> None:
    store = MemoryStore()
    token = Client(service(store=store)).get("/login?who=ann").json
    assert token.partition(".")[2].encode() not in repr(store._entries).encode()
    assert token.partition(".")[0] in store._entries


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/cached", ["private"]),
        ("/cached?cache-control=no-store", ["no-store"]),
        ("/cached?cache-control=max-age%3D60", ["max-age=60"]),
        ("/put?a=1", ["no-store"]),
    ],
)
def test_cache_control_of_responses_with_a_session(client: Client, path: str, expected: list[str]) -> None:
    response = client.get(path)
    assert response.header("cache-control") == expected
    assert response.header("vary") == ["Cookie"]


@pytest.mark.parametrize(
    ("vary", "expected"),
    [("cookie", ["cookie"]), ("*", ["*"]), ("Accept", ["Accept", "Cookie"])],
)
def test_vary_is_added_if_missing(client: Client, vary: str, expected: list[str]) -> None:
    assert client.get(f"/cached?vary={vary}").header("vary") == expected


def test_request_session_of_starlette_is_the_session_once_it_is_put_there() -> None:
    async def provide(request: Request) -> None:
        request.scope["session"] = await current(request)

    app = FastAPI(dependencies=[Depends(provide)])

    @app.get("/authorize")
    def authorize(request: Request) -> str:
        """Use it as Authlib does."""
        key = "_state_shop_1"
        request.session[key] = {"data": {"nonce": "x"}}
        request.session["gone"] = 1
        request.session.pop("gone")
        return request.session[key]["data"]["nonce"]

    @app.get("/callback")
    def callback(request: Request) -> list[Any]:
        return [request.session.get("_state_shop_1"), request.session.get("gone"), dict(request.session)]

    client = Client(SessionMiddleware(app, store=MemoryStore()))
    assert client.get("/authorize").json == "x"
    state = {"data": {"nonce": "x"}}
    assert client.get("/callback").json == [state, None, {"_state_shop_1": state}]
