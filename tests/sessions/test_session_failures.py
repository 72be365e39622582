"""Unavailable stores and foreign payloads: never a 500, no acknowledged change that is not stored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tenfold.errors import SettingsError
from tenfold.sessions import CookieTransport, ServerSessions
from tenfold.sessions.middleware import policy_lookup
from tests.sessions.support.client import Client
from tests.sessions.support.sealing import PlainSealer
from tests.sessions.support.service import WatchedStore, service

COOKIE = "__Host-session"
FAULTS = [None, TimeoutError(), ConnectionRefusedError(), OSError("gone")]


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture(params=["inside", "outside"])
def outside(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "outside")


def with_session(store: WatchedStore, **options: Any) -> Client:
    client = Client(service(store=store, **options))
    assert client.get("/put?a=1").status == 200
    return client


def break_down(store: WatchedStore, fault: Exception | None) -> None:
    store.break_down()
    store.fault = fault or store.fault


@pytest.mark.guarantee(
    "an unavailable store is never a 500, and an anonymous fallback writes nothing",
    pattern="sessions",
    under="errors, timeouts, a paused and a killed Redis",
)
@pytest.mark.parametrize("fault", FAULTS)
def test_closed_policy_is_a_503_with_retry_after(
    store: WatchedStore, outside: bool, fault: Exception | None
) -> None:
    client = with_session(store, outside=outside, retry_after_s=7)
    cookies = dict(client.cookies)
    break_down(store, fault)
    for path in ("/show", "/put?a=2", "/login?who=ann", "/logout", "/swallow", "/blocking", "/fail"):
        response = client.get(path)
        assert (path, response.status) == (path, 503)
        assert response.header("retry-after") == ["7"]
        assert response.header("cache-control") == ["no-store"]
        assert client.cookies == cookies
    assert client.get("/untouched").status == 200
    store.fault = None
    assert client.get("/show").json["data"] == {"a": "1"}


def test_one_request_asks_a_failed_store_once(store: WatchedStore) -> None:
    client = with_session(store)
    store.break_down()
    store.operations.clear()
    assert client.get("/twice").status == 503
    assert store.operations == ["read"]


@pytest.mark.parametrize("fault", FAULTS)
def test_first_write_that_cannot_be_stored_is_a_503(
    store: WatchedStore, outside: bool, fault: Exception | None
) -> None:
    client = Client(service(store=store, outside=outside))
    break_down(store, fault)
    assert client.get("/put?a=1").status == 503
    assert client.cookies == {}
    assert client.raised is None


@pytest.mark.guarantee("an unavailable store is never a 500, and an anonymous fallback writes nothing")
@pytest.mark.parametrize("fault", FAULTS)
def test_anonymous_policy_reads_as_logged_out_and_refuses_writes(
    store: WatchedStore, outside: bool, fault: Exception | None
) -> None:
    client = with_session(store, outside=outside, when_unavailable="anonymous")
    client.get("/login?who=ann")
    cookies = dict(client.cookies)
    break_down(store, fault)
    assert client.get("/show").json == {"data": {}, "principal": None}
    for path in ("/put?a=2", "/login?who=bob", "/logout", "/blocking"):
        assert client.get(path).status == 503
    # Writes are refused even if the store recovers: they would replace the session that could not be read.
    assert client.cookies == cookies
    store.fault = None
    assert client.get("/show").json == {"data": {"a": "1"}, "principal": "ann"}


@pytest.mark.control("an unavailable store is never a 500, and an anonymous fallback writes nothing")
def test_the_control_policy_decides_by_path(store: WatchedStore) -> None:
    client = with_session(store, when_unavailable={"/": "anonymous", "/put": "closed", "/show": "closed"})
    store.break_down()
    assert client.get("/show").status == 503
    assert client.get("/swallow").status == 200


@pytest.mark.parametrize(
    ("path", "policy"),
    [
        ("/", "closed"),
        ("/shop", "anonymous"),
        ("/shop/", "anonymous"),
        ("/shop/1", "anonymous"),
        ("/shopping", "closed"),
        ("/shop/admin", "closed"),
        ("/shop/admin/1", "closed"),
        ("/shop/administration", "anonymous"),
        ("/Shop", "closed"),
        ("", "closed"),
    ],
)
def test_longest_prefix_of_whole_segments_decides(path: str, policy: str) -> None:
    decide = policy_lookup({"/shop": "anonymous", "/shop/admin/": "closed"})
    assert decide({"path": path}) == policy


def test_policy_can_be_a_function(store: WatchedStore) -> None:
    client = with_session(
        store, when_unavailable=lambda scope: "anonymous" if scope["path"] == "/show" else "closed"
    )
    store.break_down()
    assert [client.get(path).status for path in ("/show", "/swallow")] == [200, 503]


@pytest.mark.parametrize("policy", ["open", {"/": "open"}, {"show": "closed"}])
def test_unknown_policy_is_refused(policy: Any) -> None:
    with pytest.raises(SettingsError):
        service(outside=True, store=WatchedStore(), when_unavailable=policy)


def test_failed_refresh_does_not_fail_a_read(store: WatchedStore) -> None:
    now = [0.0]
    client = Client(service(sessions=ServerSessions(store, clock=lambda: now[0])))
    client.get("/put?a=1")
    now[0] = 600
    reads = store.read

    async def read_then_break_down(handle: str) -> Any:
        found = await reads(handle)
        store.break_down()
        return found

    store.read = read_then_break_down  # type: ignore[method-assign]
    assert client.get("/show").json["data"] == {"a": "1"}


def test_websocket_is_refused_while_the_store_is_unavailable(store: WatchedStore) -> None:
    client = with_session(store)
    store.break_down()
    assert client.websocket("/chat") == [
        {"type": "websocket.close", "code": 1013, "reason": "try again later"}
    ]
    sent = client.websocket("/chat", extensions={"websocket.http.response": {}})
    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 503)


# ------------------------------------------------------------------ two releases, one store


def rewrite(store: WatchedStore, change: Any) -> bytes:
    """Rewrite the only session as a future release would have; return the payload."""
    (entry,) = store._entries.values()
    assert entry.stored is not None
    payload = json.dumps(change(json.loads(entry.stored.payload))).encode()
    entry.stored = type(entry.stored)(entry.stored.version, payload)
    return payload


@pytest.mark.guarantee(
    "two releases share a store and lose nothing",
    pattern="sessions",
    under="fields and formats of newer releases",
)
def test_unknown_fields_of_a_newer_release_survive_a_write(store: WatchedStore) -> None:
    client = with_session(store)
    rewrite(store, lambda record: {**record, "v": 101, "mood": {"x": [1]}})
    assert client.get("/show").json["data"] == {"a": "1"}
    assert client.get("/put?b=2").status == 200
    (entry,) = store._entries.values()
    assert entry.stored is not None
    written = json.loads(entry.stored.payload)
    assert (written["v"], written["mood"], written["k"]) == (101, {"x": [1]}, {"a": "1", "b": "2"})


@pytest.mark.guarantee("two releases share a store and lose nothing")
def test_record_in_a_future_format_is_neither_read_nor_replaced(store: WatchedStore) -> None:
    client = with_session(store)
    cookies = dict(client.cookies)
    payload = rewrite(store, lambda record: {"v": 200, "everything": "else"})
    assert [client.get(path).status for path in ("/show", "/put?a=2", "/login?who=ann")] == [503] * 3
    (entry,) = store._entries.values()
    assert entry.stored is not None
    assert entry.stored.payload == payload
    assert client.cookies == cookies


@pytest.mark.control("two releases share a store and lose nothing")
@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"{}", b'{"v": 100}', b"\xff\x00", b'{"v": "x"}', b"gASV"]
)
def test_invalid_payload_is_no_session(store: WatchedStore, payload: bytes) -> None:
    client = with_session(store)
    (entry,) = store._entries.values()
    entry.stored = type(entry.stored)(1, payload)  # type: ignore[misc]
    assert client.get("/show").json["data"] == {}


# ------------------------------------------------------------------ encryption at rest


OLD, NEW = bytes(range(32)), bytes(range(1, 33))


@pytest.mark.guarantee(
    "sealed payloads can be neither read nor moved", pattern="sessions", under="access to the store"
)
def test_payloads_are_sealed_and_keys_rotate(store: WatchedStore) -> None:
    client = Client(service(sessions=ServerSessions(store, sealer=PlainSealer(OLD))))
    client.get("/put?secret=plain")
    assert "plain" not in repr(store._entries)
    rotated = Client(service(sessions=ServerSessions(store, sealer=PlainSealer(NEW, OLD))), client.cookies)
    assert rotated.get("/show").json["data"] == {"secret": "plain"}
    rotated.get("/put?a=1")  # sealed with the new key
    done = Client(service(sessions=ServerSessions(store, sealer=PlainSealer(NEW))), client.cookies)
    assert done.get("/show").json["data"] == {"secret": "plain", "a": "1"}
    assert client.get("/show").json["data"] == {}


@pytest.mark.guarantee("sealed payloads can be neither read nor moved")
def test_sealed_payload_moved_to_another_handle_is_no_session(store: WatchedStore) -> None:
    app = service(sessions=ServerSessions(store, sealer=PlainSealer(OLD)))
    ann, mallory = Client(app), Client(app)
    ann.get("/login?who=ann")
    mallory.get("/login?who=mallory")
    handles = [client.cookies[COOKIE].partition(".")[0] for client in (ann, mallory)]
    store._entries[handles[0]] = store._entries[handles[1]]
    moved = Client(app, {COOKIE: handles[0] + "." + mallory.cookies[COOKIE].partition(".")[2]})
    assert moved.get("/show").json["principal"] is None


@pytest.mark.control("sealed payloads can be neither read nor moved")
def test_the_control_unsealed_payload_can_be_read_and_moved(store: WatchedStore) -> None:
    app = service(store=store)
    mallory = Client(app)
    mallory.get("/login?who=mallory")
    handle, _, secret = mallory.cookies[COOKIE].partition(".")
    store._entries["A" * 22] = store._entries[handle]
    assert "mallory" in repr(store._entries)
    moved = Client(app, {COOKIE: "A" * 22 + "." + secret})
    assert moved.get("/show").json["principal"] == "mallory"


def test_cookie_without_secure_has_no_prefix(store: WatchedStore) -> None:
    client = Client(service(store=store, transport=CookieTransport(secure=False, max_age_s=60)))
    (cookie,) = client.get("/put?a=1").header("set-cookie")
    name, _, attributes = cookie.partition("=")
    assert name == "session"
    assert "Secure" not in attributes
    assert attributes.endswith("; Path=/; HttpOnly; SameSite=Lax; Max-Age=60")
