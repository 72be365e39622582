"""Sessions stored in cookies: guarantees shared with server sessions, and limits of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenfold.errors import SessionError
from tenfold.sessions import CookieSessions
from tenfold.signing import Sealer, generate_key
from tests.sessions.support.client import Client
from tests.sessions.support.service import Clock, WatchedStore, service

COOKIE = "__Host-session"
KEY = generate_key()


def sealer(*keys: str) -> Sealer:
    return Sealer(list(keys) or [KEY], purpose="sessions")


@pytest.fixture
def revocations() -> WatchedStore:
    return WatchedStore()


def principal(client: Client) -> Any:
    return client.get("/show").json["principal"]


def test_session_is_stored_in_its_cookie_alone() -> None:
    client = Client(service(sessions=CookieSessions(sealer())))
    client.get("/put?a=secret")
    client.get("/login?who=ann")
    another_process = Client(service(sessions=CookieSessions(sealer())), client.cookies)
    assert another_process.get("/show").json == {"data": {"a": "secret"}, "principal": "ann"}
    assert not another_process.get("/show").header("set-cookie")
    client.get("/nested")
    assert client.get("/show").json["data"]["cart"] == [{"n": 2}]
    client.get("/logout")
    assert client.cookies == {}


@pytest.mark.parametrize(
    "token", ["x", "A" * 100, "A" * 3900, "A" * 20_000, "-._", "A" * 22 + "." + "A" * 43]
)
def test_unsealed_cookie_is_no_session(token: str) -> None:
    assert principal(Client(service(sessions=CookieSessions(sealer())), {COOKIE: token})) is None


def test_changed_byte_or_unknown_key_is_no_session_and_keys_rotate() -> None:
    client = Client(service(sessions=CookieSessions(sealer())))
    client.get("/login?who=ann")
    token = client.cookies[COOKIE]
    changed = token[:60] + ("A" if token[60] != "A" else "B") + token[61:]
    assert principal(Client(client.app, {COOKIE: changed})) is None
    new = generate_key()
    assert principal(Client(service(sessions=CookieSessions(sealer(new))), client.cookies)) is None
    rotated = Client(service(sessions=CookieSessions(sealer(new, KEY))), client.cookies)
    assert principal(rotated) == "ann"
    rotated.get("/put?a=1")
    assert principal(Client(service(sessions=CookieSessions(sealer(new))), rotated.cookies)) == "ann"


def test_idle_and_absolute_expiry_of_cookie_sessions_and_refresh() -> None:
    clock = Clock()
    client = Client(service(sessions=CookieSessions(sealer(), idle_s=100, absolute_s=1000, clock=clock)))
    client.get("/login?who=ann")
    refreshes = 0
    for _ in range(50):
        clock.now += 2
        refreshes += bool(client.get("/show").header("set-cookie"))
    assert refreshes == 10
    idle = dict(client.cookies)
    clock.now += 101
    assert principal(Client(client.app, idle)) is None
    client = Client(client.app)
    client.get("/login?who=ann")
    for _ in range(11):
        assert principal(client) == "ann"
        clock.now += 90
    clock.now += 10
    assert principal(client) is None


def test_cookie_session_over_the_size_limit_is_refused() -> None:
    client = Client(service(sessions=CookieSessions(sealer())))
    assert client.get("/large?bytes=2900").status == 413
    assert client.get("/large?bytes=2500").status == 200
    assert len(COOKIE) + 1 + len(client.cookies[COOKIE]) <= 4096


def test_planted_cookie_is_invalid_after_the_login() -> None:
    mallory = Client(service(sessions=CookieSessions(sealer())))
    mallory.get("/put?a=1")
    victim = Client(mallory.app, mallory.cookies)
    victim.get("/login?who=ann")
    assert [principal(victim), principal(mallory)] == ["ann", None]


# ------------------------------------------------------------------ revocation


@pytest.mark.guarantee(
    "with `revocations=`, a logout ends every copy of a cookie", pattern="sessions", under="a copied cookie"
)
def test_logout_with_revocations_ends_every_copy(revocations: WatchedStore) -> None:
    sessions = CookieSessions(sealer(), revocations=revocations)
    assert sessions.can_revoke
    client = Client(service(sessions=sessions))
    client.get("/login?who=ann")
    stolen = Client(client.app, client.cookies)
    revocations.operations.clear()
    assert principal(stolen) == "ann"
    assert revocations.operations == ["read"]
    client.get("/logout")
    assert principal(stolen) is None


@pytest.mark.control("with `revocations=`, a logout ends every copy of a cookie")
def test_the_control_copy_survives_logout_without_revocations() -> None:
    sessions = CookieSessions(sealer())
    assert not sessions.can_revoke
    client = Client(service(sessions=sessions))
    client.get("/login?who=ann")
    stolen = Client(client.app, client.cookies)
    client.get("/logout")
    assert principal(stolen) == "ann"


def test_logout_everywhere_and_rotation_with_revocations(revocations: WatchedStore) -> None:
    sessions = CookieSessions(sealer(), revocations=revocations)
    app = service(sessions=sessions)
    phone, laptop, bob = Client(app), Client(app), Client(app)
    for client, who in ((phone, "ann"), (laptop, "ann"), (bob, "bob")):
        client.get(f"/login?who={who}")
    before = Client(app, phone.cookies)
    phone.get("/rotate")
    assert [principal(phone), principal(before)] == ["ann", None]
    asyncio.run(sessions.logout_everywhere("ann"))
    assert [principal(client) for client in (phone, laptop, bob)] == [None, None, "bob"]


def test_revoking_without_revocations_is_refused() -> None:
    sessions = CookieSessions(sealer())
    for call in (
        sessions.logout_everywhere("ann"),
        sessions.revoke_device("ann", "x"),
        sessions.devices("ann"),
    ):
        with pytest.raises(SessionError, match="cookies"):
            asyncio.run(call)


def test_unavailable_revocations_are_a_503(revocations: WatchedStore) -> None:
    client = Client(service(sessions=CookieSessions(sealer(), revocations=revocations)))
    client.get("/login?who=ann")
    revocations.break_down()
    assert client.get("/show").status == 503


def test_change_after_the_cookie_was_sent_is_an_error() -> None:
    client = Client(service(sessions=CookieSessions(sealer())))
    client.get("/background?save")
    assert isinstance(client.raised, SessionError)
    assert client.get("/show").json["data"] == {"before": 1}


def test_documented_limit_last_response_of_concurrent_requests_wins() -> None:
    app = service(sessions=CookieSessions(sealer()))
    client = Client(app)
    client.get("/put?a=1")
    one, other = Client(app, client.cookies), Client(app, client.cookies)
    one.get("/put?b=1")
    other.get("/put?c=1")
    assert other.get("/show").json["data"] == {"a": "1", "c": "1"}
