"""Concurrent requests in any order: no acknowledged update is lost, no ended session restored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tenfold.errors import SessionEndedError, SessionStoreError
from tenfold.sessions.backend import StoredSession
from tenfold.sessions.server_sessions import ServerSessions
from tenfold.sessions.session import Session
from tests.sessions.support.interleaving import LastWriteWins, SteppedStore, Upserts, interleave, run

Request = Callable[[Session], Any]
KEYS = ("a", "b", "c")


def start_session(sessions: ServerSessions, **data: Any) -> str:
    """Start a session; return its token."""
    session = Session(sessions)
    session.update(data or {"first": True})
    run(session.save())
    assert session.pending_token
    return session.pending_token


async def run_request(sessions: ServerSessions, token: str, do: Request) -> Session:
    session = Session(sessions, await sessions.load(token))
    do(session)
    await session.save()
    return session


def load_data(sessions: ServerSessions, token: str) -> dict[str, Any] | None:
    stored = run(sessions.load(token))
    return dict(Session(sessions, stored)) if isinstance(stored, StoredSession) else None


def in_order(*order: int) -> Callable[[list[int]], int]:
    """Choose requests by number in this order, then the first that is running."""
    turns = iter(order)
    return lambda running: next((number for number in turns if number in running), running[0])


# ------------------------------------------------------------------ no lost update


def append(key: str, item: int) -> Request:
    return lambda session: session.change(key, lambda items: [*items, item], [])


def put(key: str, item: int) -> Request:
    return lambda session: session.__setitem__(key, item)


def write_all(store: SteppedStore, writers: int, choose: Callable[[list[int]], int]) -> dict[str, Any]:
    """Let every writer add its own key, increment a counter, and append to a shared list."""
    sessions = ServerSessions(store)
    token = start_session(sessions, n=0)

    def writer(number: int) -> Request:
        def do(session: Session) -> None:
            session[f"own{number}"] = number
            session.change("n", lambda n: n + 1)
            append("all", number)(session)

        return do

    results = interleave([run_request(sessions, token, writer(number)) for number in range(writers)], choose)
    assert not [result for result in results if isinstance(result, Exception)]
    stored = load_data(sessions, token)
    assert stored is not None
    return stored


@pytest.mark.guarantee(
    "no acknowledged update of another key, and no increment, is lost",
    pattern="sessions",
    under="any interleaving of concurrent requests",
)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), writers=st.integers(2, 6))
def test_no_update_of_another_key_and_no_increment_is_lost(data: st.DataObject, writers: int) -> None:
    stored = write_all(SteppedStore(), writers, lambda running: data.draw(st.sampled_from(running)))
    assert {key for key in stored if key.startswith("own")} == {f"own{number}" for number in range(writers)}
    assert stored["n"] == writers
    assert sorted(stored["all"]) == list(range(writers))


@pytest.mark.control("no acknowledged update of another key, and no increment, is lost")
def test_the_control_without_compare_and_set_updates_are_lost() -> None:
    stored = write_all(LastWriteWins(), 2, in_order(0, 1, 0, 1, 0, 1))
    assert stored["n"] == 1
    assert ("own0" in stored) != ("own1" in stored)


def test_nested_edits_of_different_keys_merge() -> None:
    sessions = ServerSessions(SteppedStore())
    token = start_session(sessions, x=[], y=[])
    both = [
        run_request(sessions, token, lambda session: session["x"].append(1)),
        run_request(sessions, token, lambda session: session["y"].append(2)),
    ]
    interleave(both, in_order(0, 1, 0, 1))
    assert load_data(sessions, token) == {"x": [1], "y": [2]}


# ------------------------------------------------------------------ no restored session


def log_out(session: Session) -> None:
    session.logout()


def run_with_logout(store: SteppedStore, choose: Callable[[list[int]], int]) -> tuple[Any, list[Any]]:
    sessions = ServerSessions(store)
    token = start_session(sessions, cart=[])
    requests = [
        run_request(sessions, token, log_out),
        run_request(sessions, token, put("a", 1)),
        run_request(sessions, token, append("cart", 2)),
    ]
    results = interleave(requests, choose)
    return load_data(sessions, token), results


@pytest.mark.guarantee(
    "logout wins over every late write", pattern="sessions", under="writes before, during and after it"
)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_logout_wins_over_every_late_write(data: st.DataObject) -> None:
    stored, results = run_with_logout(SteppedStore(), lambda running: data.draw(st.sampled_from(running)))
    assert stored is None
    for result in results[1:]:  # acknowledged before the logout, in a session that began after it, or refused
        assert isinstance(result, Session | SessionEndedError)


@pytest.mark.control("logout wins over every late write")
def test_the_control_without_tombstones_a_late_write_restores_the_session() -> None:
    # The write reads the session, the logout completes, the write is sent.
    stored, _ = run_with_logout(Upserts(), in_order(1, 1, 0, 0, 0, 1, 1))
    assert stored is not None
    stored, results = run_with_logout(SteppedStore(), in_order(1, 1, 0, 0, 0, 1, 1))
    assert stored is None
    assert isinstance(results[1], SessionEndedError)


# ------------------------------------------------------------------ random requests, against a model


KINDS = st.lists(
    st.sampled_from(["set", "delete", "change", "nested", "login", "rotate", "logout", "read"]),
    min_size=2,
    max_size=5,
)


@pytest.mark.guarantee("no acknowledged update of another key, and no increment, is lost")
@settings(max_examples=300, deadline=None)
@given(data=st.data(), kinds=KINDS)
def test_concurrent_requests_are_equivalent_to_some_serial_order(
    data: st.DataObject, kinds: list[str]
) -> None:
    check_any_order(SteppedStore(), data, kinds)


@pytest.mark.control("no acknowledged update of another key, and no increment, is lost")
@pytest.mark.parametrize("broken", [LastWriteWins, Upserts])
def test_the_control_model_detects_broken_stores(broken: type[SteppedStore]) -> None:
    @settings(max_examples=1000, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(data=st.data(), kinds=KINDS)
    def search(data: st.DataObject, kinds: list[str]) -> None:
        check_any_order(broken(), data, kinds)

    with pytest.raises((AssertionError, ExceptionGroup)):
        search()


def check_any_order(store: SteppedStore, data: st.DataObject, kinds: list[str]) -> None:
    """Check that the stored session is the result of some serial order of the acknowledged requests.

    At most one token is valid, and a refused request has changed nothing.
    """
    sessions = ServerSessions(store)
    token = start_session(sessions, a=0, b=0, nested={"x": []})
    handle = token.partition(".")[0]
    tokens, had_session = [token], set[int]()
    coroutines = [
        run_request(sessions, token, random_request(kind, number, tokens, had_session))
        for number, kind in enumerate(kinds)
    ]
    results = interleave(coroutines, lambda running: data.draw(st.sampled_from(running)))
    unexpected = [r for r in results if isinstance(r, Exception) and not isinstance(r, SessionEndedError)]
    assert unexpected == []
    candidates = {each for each in tokens if each.startswith(handle)}
    stored = [data for each in candidates if (data := load_data(sessions, each)) is not None]
    logouts = [n for n, kind in enumerate(kinds) if kind == "logout" and n in had_session]
    assert len(stored) == (0 if logouts else 1)
    if stored:
        acknowledged = [
            (number, kind)
            for number, kind in enumerate(kinds)
            if isinstance(results[number], Session) and results[number].handle == handle
        ]
        check_against_model(stored[0], acknowledged)


def random_request(kind: str, number: int, tokens: list[str], had_session: set[int]) -> Request:
    def do(session: Session) -> None:
        if session.handle is not None:
            had_session.add(number)
        if kind == "set":
            session["a"] = number + 1
        elif kind == "delete":
            session.pop("b", None)
        elif kind == "change":
            session.change("n", lambda n: n + 1, 0)
        elif kind == "nested":
            session.get("nested", {"x": []})["x"].append(number)
        elif kind == "login":
            tokens.append(session.login("ann"))
        elif kind == "rotate" and session.handle is not None:
            tokens.append(session.rotate())
        elif kind == "logout":
            session.logout()

    return do


def check_against_model(stored: dict[str, Any], requests: Sequence[tuple[int, str]]) -> None:
    sets = [number + 1 for number, kind in requests if kind == "set"]
    assert stored["a"] in (sets or [0])
    assert ("b" in stored) == all(kind != "delete" for _, kind in requests)
    assert stored.get("n", 0) == sum(kind == "change" for _, kind in requests)
    edits = [number for number, kind in requests if kind == "nested"]
    # One key, written as a whole: the last edit wins, including those that it had read.
    assert set(stored["nested"]["x"]) <= set(edits)
    assert bool(stored["nested"]["x"]) == bool(edits)


# ------------------------------------------------------------------ tokens


def test_concurrent_logins_of_one_principal_succeed_and_leave_one_valid_token() -> None:
    """A double click: both have read the anonymous session before either has logged in."""
    sessions = ServerSessions(SteppedStore())
    token = start_session(sessions, cart=[1])
    tokens: list[str] = []
    twice = [
        run_request(sessions, token, lambda session: tokens.append(session.login("ann"))) for _ in range(2)
    ]
    results = interleave(twice, in_order(0, 1, 0, 1, 0, 1, 0, 1))
    assert all(isinstance(result, Session) for result in results)
    assert [load_data(sessions, each) for each in (token, *tokens)].count(None) == 2
    assert {"cart": [1]} in [load_data(sessions, each) for each in tokens]


def test_concurrent_logins_of_two_principals_cannot_share_a_session() -> None:
    """A planted session: the attacker and the victim log in to it at the same time."""
    sessions = ServerSessions(SteppedStore())
    token = start_session(sessions)
    both = [
        run_request(sessions, token, lambda session, who=who: session.login(who))
        for who in ("mallory", "ann")
    ]
    results = interleave(both, in_order(0, 1, 0, 1, 0, 1, 0, 1))
    assert sorted(type(result).__name__ for result in results) == ["Session", "SessionEndedError"]


def test_write_with_the_former_token_is_refused_after_a_login() -> None:
    sessions = ServerSessions(SteppedStore())
    token = start_session(sessions)
    tokens: list[str] = []
    late = run_request(sessions, token, put("late", 1))
    late.send(None)  # about to read
    late.send(None)  # has read, about to write
    run(run_request(sessions, token, lambda session: tokens.append(session.login("ann"))))
    with pytest.raises(SessionEndedError):
        run(late)
    assert load_data(sessions, tokens[0]) == {"first": True}
    # A later one is refused as well: its response would give the client another session's cookie.
    with pytest.raises(SessionEndedError):
        run(run_request(sessions, token, put("later", 1)))


def test_logout_everywhere_ends_a_login_that_is_being_saved() -> None:
    store = SteppedStore()
    sessions = ServerSessions(store)
    login = run_request(sessions, "", lambda session: session.login("ann"))
    login.send(None)  # about to be listed
    login.send(None)  # listed, about to be created
    run(sessions.logout_everywhere("ann"))
    with pytest.raises(SessionEndedError):
        run(login)
    assert run(sessions.devices("ann")) == []


def test_endless_conflicts_raise_a_store_error() -> None:
    class Restless(SteppedStore):
        async def replace(self, handle: str, payload: bytes, *, version: int, ttl_s: float) -> Any:
            stored = await self.read(handle)
            assert stored is not None
            await super().replace(handle, stored.payload, version=stored.version, ttl_s=ttl_s)
            return await self.read(handle)

    sessions = ServerSessions(Restless())
    token = start_session(sessions)
    with pytest.raises(SessionStoreError, match="64 times"):
        run(run_request(sessions, token, put("a", 1)))
