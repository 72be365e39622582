"""Sessions that only their clients keep: what holds as for the others, and what does not."""

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


def test_a_session_lives_in_its_cookie_alone() -> None:
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
def test_what_nobody_sealed_is_no_session(token: str) -> None:
    assert principal(Client(service(sessions=CookieSessions(sealer())), {COOKIE: token})) is None


def test_a_changed_byte_or_another_key_opens_nothing_and_keys_rotate() -> None:
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


def test_idle_and_absolute_time_end_it_and_reads_refresh_it_now_and_then() -> None:
    clock = Clock()
    client = Client(service(sessions=CookieSessions(sealer(), idle_s=100, absolute_s=1000, clock=clock)))
    client.get("/login?who=ann")
    set_again = 0
    for _ in range(50):
        clock.now += 2
        set_again += bool(client.get("/show").header("set-cookie"))
    assert set_again == 10
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


def test_too_much_for_a_cookie_is_refused() -> None:
    client = Client(service(sessions=CookieSessions(sealer())))
    assert client.get("/large?bytes=2900").status == 413
    assert client.get("/large?bytes=2500").status == 200
    assert len(COOKIE) + 1 + len(client.cookies[COOKIE]) <= 4096


def test_a_planted_session_is_worth_nothing_after_the_login() -> None:
    mallory = Client(service(sessions=CookieSessions(sealer())))
    mallory.get("/put?a=1")
    victim = Client(mallory.app, mallory.cookies)
    victim.get("/login?who=ann")
    assert [principal(victim), principal(mallory)] == ["ann", None]


# ------------------------------------------------------------------ revocation


def test_with_revocations_logout_ends_every_copy(revocations: WatchedStore) -> None:
    sessions = CookieSessions(sealer(), revocations=revocations)
    assert sessions.revocable
    client = Client(service(sessions=sessions))
    client.get("/login?who=ann")
    stolen = Client(client.app, client.cookies)
    revocations.operations.clear()
    assert principal(stolen) == "ann"
    assert revocations.operations == ["read"]
    client.get("/logout")
    assert principal(stolen) is None


def test_the_control_without_revocations_a_copy_lives_on() -> None:
    sessions = CookieSessions(sealer())
    assert not sessions.revocable
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


def test_without_revocations_what_cannot_be_done_is_refused() -> None:
    sessions = CookieSessions(sealer())
    for call in (
        sessions.logout_everywhere("ann"),
        sessions.revoke_device("ann", "x"),
        sessions.devices("ann"),
    ):
        with pytest.raises(SessionError, match="cookies"):
            asyncio.run(call)


def test_revocations_that_do_not_answer_close_the_door(revocations: WatchedStore) -> None:
    client = Client(service(sessions=CookieSessions(sealer(), revocations=revocations)))
    client.get("/login?who=ann")
    revocations.break_down()
    assert client.get("/show").status == 503


def test_a_change_that_no_cookie_can_carry_any_more_is_an_error() -> None:
    client = Client(service(sessions=CookieSessions(sealer())))
    client.get("/background?save")
    assert isinstance(client.raised, SessionError)
    assert client.get("/show").json["data"] == {"before": 1}


def test_the_limit_that_is_told_of_concurrent_requests_the_last_answer_wins() -> None:
    app = service(sessions=CookieSessions(sealer()))
    client = Client(app)
    client.get("/put?a=1")
    one, other = Client(app, client.cookies), Client(app, client.cookies)
    one.get("/put?b=1")
    other.get("/put?c=1")
    assert other.get("/show").json["data"] == {"a": "1", "c": "1"}
