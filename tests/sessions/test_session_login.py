"""Login and logout, session fixation, rotation, devices."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from typing import Any

import pytest

from tenfold.errors import SessionError
from tenfold.sessions import BearerTransport, MemoryStore, ServerSessions, Session
from tests.sessions.support.client import Client
from tests.sessions.support.service import Clock, WatchedStore, service

COOKIE = "__Host-session"
FORGED = "A" * 22 + "." + "B" * 43


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
def app(store: WatchedStore) -> Any:
    return service(store=store)


def logged_in(app: Any, who: str = "ann", device: str = "") -> Client:
    client = Client(app)
    assert client.get(f"/login?who={who}&device={device}").status == 200
    return client


def principal(client: Client) -> str | None:
    found: str | None = client.get("/show").json["principal"]
    return found


# ------------------------------------------------------------------ fixation


@pytest.mark.guarantee(
    "an unknown token is never adopted, a planted one is invalid after the login",
    pattern="sessions",
    under="forged, planted, replayed tokens",
)
@pytest.mark.parametrize(
    "token",
    [FORGED, "x", "A" * 22, "a.b", FORGED + "x", "A" * 5000, "." * 66, "é", "A" * 22 + "." + "=" * 43],
)
def test_unknown_token_is_never_adopted(app: Any, store: WatchedStore, token: str) -> None:
    client = Client(app, {COOKIE: token})
    client.get("/put?a=1")
    assert client.cookies[COOKIE] != token
    assert token.partition(".")[0] not in store._entries
    assert Client(app, {COOKIE: token}).get("/show").json["data"] == {}


@pytest.mark.guarantee("an unknown token is never adopted, a planted one is invalid after the login")
def test_planted_token_is_invalid_after_the_login(app: Any) -> None:
    mallory = Client(app)
    mallory.get("/put?planted=1")
    victim = Client(app, mallory.cookies)
    victim.get("/login?who=ann")
    assert principal(victim) == "ann"
    assert principal(mallory) is None
    assert mallory.get("/show").json["data"] == {}
    assert victim.get("/show").json["data"] == {"planted": "1"}


@pytest.mark.control("an unknown token is never adopted, a planted one is invalid after the login")
def test_the_control_planted_token_is_logged_in_without_the_secret_check(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hmac, "compare_digest", lambda ours, theirs: True)
    mallory = Client(app)
    mallory.get("/put?planted=1")
    Client(app, mallory.cookies).get("/login?who=ann")
    assert principal(mallory) == "ann"


def test_handle_alone_is_no_credential(app: Any) -> None:
    client = logged_in(app)
    handle = client.cookies[COOKIE].partition(".")[0]
    assert principal(Client(app, {COOKIE: handle + "." + "A" * 43})) is None


def test_rotation_replaces_the_token_and_keeps_the_session(app: Any) -> None:
    client = logged_in(app)
    before = dict(client.cookies)
    client.get("/rotate")
    assert client.cookies != before
    assert principal(client) == "ann"
    assert principal(Client(app, before)) is None


# ------------------------------------------------------------------ logout


def test_token_is_invalid_after_logout(app: Any) -> None:
    client = logged_in(app)
    stolen = dict(client.cookies)
    client.get("/logout")
    assert client.cookies == {}
    replayed = Client(app, stolen)
    assert principal(replayed) is None
    replayed.get("/put?a=1")
    assert replayed.cookies != stolen
    assert principal(Client(app, stolen)) is None


def test_values_set_after_logout_start_a_new_session(app: Any) -> None:
    client = logged_in(app)
    before = dict(client.cookies)
    client.get("/logout_with_message")
    assert client.get("/show").json == {"data": {"message": "bye"}, "principal": None}
    assert client.cookies[COOKIE].partition(".")[0] != before[COOKIE].partition(".")[0]


def test_login_of_another_principal_inherits_no_data(app: Any) -> None:
    client = logged_in(app)
    client.get("/put?secret=of-ann")
    before = dict(client.cookies)
    client.get("/login?who=bob")
    assert client.get("/show").json == {"data": {}, "principal": "bob"}
    assert principal(Client(app, before)) is None


def test_logout_everywhere_ends_every_session_of_that_principal_only(app: Any, store: WatchedStore) -> None:
    phone, laptop, bob = logged_in(app), logged_in(app), logged_in(app, "bob")
    phone.get("/logout_everywhere")
    assert [principal(each) for each in (phone, laptop, bob)] == [None, None, "bob"]
    asyncio.run(ServerSessions(store).logout_everywhere("bob"))
    assert principal(bob) is None


class DropsMembers(WatchedStore):
    """Drops a member of a full group without revoking it."""

    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        surplus = await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)
        return surplus and await super().add_member(group, handle, ttl_s=ttl_s, replacing=surplus)


@pytest.mark.guarantee(
    "logging out everywhere reaches every session of a principal",
    pattern="sessions",
    under="more logins than a list holds",
)
def test_full_list_of_sessions_hides_none_from_logout_everywhere(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenfold.sessions.stores.memory.MAX_MEMBERS", 3)
    thief, *others = [logged_in(app) for _ in range(5)]
    assert [principal(each) for each in (thief, *others)] == [None, None, "ann", "ann", "ann"]
    others[-1].get("/logout_everywhere")
    assert not any(principal(each) for each in others)


@pytest.mark.control("logging out everywhere reaches every session of a principal")
def test_the_control_store_that_drops_members_hides_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.sessions.stores.memory.MAX_MEMBERS", 3)
    app = service(store=DropsMembers())
    thief, *others = [logged_in(app) for _ in range(5)]
    others[-1].get("/logout_everywhere")
    assert principal(thief) == "ann"


def test_logout_everywhere_needs_a_login(app: Any) -> None:
    client = Client(app)
    client.get("/logout_everywhere")
    assert isinstance(client.raised, SessionError)


# ------------------------------------------------------------------ devices


def test_devices_are_listed_with_labels_and_revoked_one_by_one(app: Any) -> None:
    phone, laptop, bob = (
        logged_in(app, device="phone"),
        logged_in(app, device="laptop"),
        logged_in(app, "bob"),
    )
    listed = laptop.get("/devices").json
    assert sorted((label, current) for _, label, current in listed) == [("laptop", True), ("phone", False)]
    handle = next(handle for handle, label, _ in listed if label == "phone")
    assert bob.get(f"/revoke?handle={handle}").json is False
    assert principal(phone) == "ann"
    assert laptop.get(f"/revoke?handle={handle}").json is True
    assert principal(phone) is None
    assert [label for _, label, _ in laptop.get("/devices").json] == ["laptop"]


def test_request_can_revoke_its_own_session(app: Any) -> None:
    client = logged_in(app)
    handle = client.cookies[COOKIE].partition(".")[0]
    assert client.get(f"/revoke?handle={handle}").json is True
    assert client.cookies == {}


def test_devices_outside_of_requests(store: WatchedStore) -> None:
    clock = Clock()
    sessions = ServerSessions(store, clock=clock)
    app = service(sessions=sessions)
    logged_in(app, device="old")
    clock.now += 10
    logged_in(app, device="x" * 500)
    devices = asyncio.run(sessions.devices("ann"))
    assert [device.label for device in devices] == ["x" * 200, "old"]
    assert [device.created for device in devices] == [clock.now, clock.now - 10]
    assert asyncio.run(sessions.devices("unknown")) == []


@pytest.mark.parametrize("who", ["", 7, None, "x" * 256])
def test_principal_must_be_text(who: Any) -> None:
    with pytest.raises(SessionError, match=r"str\(user\.id\)"):
        Session(ServerSessions(MemoryStore())).login(who)


# ------------------------------------------------------------------ bearer tokens


def test_bearer_client_gets_its_token_from_login(store: WatchedStore) -> None:
    app = service(store=store, transport=BearerTransport())
    client = Client(app)
    response = client.get("/login?who=ann")
    assert not response.header("set-cookie")
    client.bearer = response.json
    response = client.get("/show")
    assert response.json["principal"] == "ann"
    assert response.header("vary") == ["Authorization"]
    client.bearer, before = client.get("/rotate").json, client.bearer
    assert [principal(client), principal(Client(app, bearer=before))] == ["ann", None]
    client.get("/logout")
    assert principal(client) is None


def test_new_session_without_token_for_a_bearer_client_is_an_error(store: WatchedStore) -> None:
    client = Client(service(store=store, transport=BearerTransport()))
    client.get("/put?a=1")
    assert isinstance(client.raised, SessionError)
    assert store.operations == []
