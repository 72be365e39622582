"""Concurrent requests: whatever their order, nothing acknowledged is lost and nothing comes back."""

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


def begun(sessions: ServerSessions, **data: Any) -> str:
    """The token of a new session."""
    session = Session(sessions)
    session.update(data or {"first": True})
    run(session.save())
    assert session.pending_token
    return session.pending_token


async def visit(sessions: ServerSessions, token: str, do: Request) -> Session:
    session = Session(sessions, await sessions.load(token))
    do(session)
    await session.save()
    return session


def found(sessions: ServerSessions, token: str) -> dict[str, Any] | None:
    kept = run(sessions.load(token))
    return dict(Session(sessions, kept)) if isinstance(kept, StoredSession) else None


# ------------------------------------------------------------------ no lost update


def append(key: str, item: int) -> Request:
    return lambda session: session.change(key, lambda items: [*items, item], [])


def put(key: str, item: int) -> Request:
    return lambda session: session.__setitem__(key, item)


def write_all(store: SteppedStore, writers: int, choose: Callable[[list[int]], int]) -> dict[str, Any]:
    """Every writer adds its own key, counts itself, and appends to a list that all share."""
    sessions = ServerSessions(store)
    token = begun(sessions, n=0)

    def writer(number: int) -> Request:
        def do(session: Session) -> None:
            session[f"own{number}"] = number
            session.change("n", lambda n: n + 1)
            append("all", number)(session)

        return do

    results = interleave([visit(sessions, token, writer(number)) for number in range(writers)], choose)
    assert not [result for result in results if isinstance(result, Exception)]
    kept = found(sessions, token)
    assert kept is not None
    return kept


@settings(max_examples=100, deadline=None)
@given(data=st.data(), writers=st.integers(2, 6))
def test_no_update_of_another_key_and_no_increment_is_lost(data: st.DataObject, writers: int) -> None:
    kept = write_all(SteppedStore(), writers, lambda running: data.draw(st.sampled_from(running)))
    assert {key for key in kept if key.startswith("own")} == {f"own{number}" for number in range(writers)}
    assert kept["n"] == writers
    assert sorted(kept["all"]) == list(range(writers))


def test_the_control_without_compare_and_set_updates_are_lost() -> None:
    turns = iter([0, 1, 0, 1, 0, 1])
    kept = write_all(LastWriteWins(), 2, lambda running: next((n for n in turns if n in running), running[0]))
    assert kept["n"] == 1
    assert ("own0" in kept) != ("own1" in kept)


def test_nested_edits_of_different_keys_merge() -> None:
    sessions = ServerSessions(SteppedStore())
    token = begun(sessions, x=[], y=[])
    both = [
        visit(sessions, token, lambda session: session["x"].append(1)),
        visit(sessions, token, lambda session: session["y"].append(2)),
    ]
    turns = iter([0, 1, 0, 1])
    interleave(both, lambda running: next((n for n in turns if n in running), running[0]))
    assert found(sessions, token) == {"x": [1], "y": [2]}


# ------------------------------------------------------------------ no resurrection


def log_out(session: Session) -> None:
    session.logout()


def after_logout(store: SteppedStore, choose: Callable[[list[int]], int]) -> tuple[Any, list[Any]]:
    sessions = ServerSessions(store)
    token = begun(sessions, cart=[])
    requests = [
        visit(sessions, token, log_out),
        visit(sessions, token, put("a", 1)),
        visit(sessions, token, append("cart", 2)),
    ]
    results = interleave(requests, choose)
    return found(sessions, token), results


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_logout_wins_over_every_late_write(data: st.DataObject) -> None:
    kept, results = after_logout(SteppedStore(), lambda running: data.draw(st.sampled_from(running)))
    assert kept is None
    for result in results[1:]:  # acknowledged before the logout, in a session that began after it, or refused
        assert isinstance(result, Session | SessionEndedError)


def test_the_control_without_tombstones_a_late_write_restores_the_session() -> None:
    # The write has read the session, the logout goes through, the write arrives.
    turns = iter([1, 1, 0, 0, 0, 1, 1])
    kept, _ = after_logout(Upserts(), lambda running: next((n for n in turns if n in running), running[0]))
    assert kept is not None
    turns = iter([1, 1, 0, 0, 0, 1, 1])
    kept, results = after_logout(
        SteppedStore(), lambda running: next((n for n in turns if n in running), running[0])
    )
    assert kept is None
    assert isinstance(results[1], SessionEndedError)


# ------------------------------------------------------------------ everything at once, against a model


KINDS = st.lists(
    st.sampled_from(["set", "delete", "change", "nested", "login", "rotate", "logout", "read"]),
    min_size=2,
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), kinds=KINDS)
def test_concurrent_requests_are_equivalent_to_some_serial_order(
    data: st.DataObject, kinds: list[str]
) -> None:
    check_any_order(SteppedStore(), data, kinds)


@pytest.mark.parametrize("broken", [LastWriteWins, Upserts])
def test_the_control_model_detects_broken_stores(broken: type[SteppedStore]) -> None:
    @settings(max_examples=1000, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(data=st.data(), kinds=KINDS)
    def search(data: st.DataObject, kinds: list[str]) -> None:
        check_any_order(broken(), data, kinds)

    with pytest.raises((AssertionError, ExceptionGroup)):
        search()


def check_any_order(store: SteppedStore, data: st.DataObject, kinds: list[str]) -> None:
    """What is kept in the end is what some order of the acknowledged requests, one at a time, would leave.

    One valid token at most leads to the session; a request that was refused has left no trace.
    """
    sessions = ServerSessions(store)
    token = begun(sessions, a=0, b=0, nested={"x": []})
    handle = token.partition(".")[0]
    tokens, was_there = [token], set[int]()
    coroutines = [
        visit(sessions, token, request(kind, number, tokens, was_there)) for number, kind in enumerate(kinds)
    ]
    results = interleave(coroutines, lambda running: data.draw(st.sampled_from(running)))
    unexpected = [r for r in results if isinstance(r, Exception) and not isinstance(r, SessionEndedError)]
    assert unexpected == []
    ours = {each for each in tokens if each.startswith(handle)}
    kept = [data for each in ours if (data := found(sessions, each)) is not None]
    logouts = [n for n, kind in enumerate(kinds) if kind == "logout" and n in was_there]
    assert len(kept) == (0 if logouts else 1)
    if kept:
        acknowledged = [
            (number, kind)
            for number, kind in enumerate(kinds)
            if isinstance(results[number], Session) and results[number].handle == handle
        ]
        check_against_model(kept[0], acknowledged)


def request(kind: str, number: int, tokens: list[str], was_there: set[int]) -> Request:
    def do(session: Session) -> None:
        if session.handle is not None:
            was_there.add(number)
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


def check_against_model(kept: dict[str, Any], requests: Sequence[tuple[int, str]]) -> None:
    sets = [number + 1 for number, kind in requests if kind == "set"]
    assert kept["a"] in (sets or [0])
    assert ("b" in kept) == all(kind != "delete" for _, kind in requests)
    assert kept.get("n", 0) == sum(kind == "change" for _, kind in requests)
    edits = [number for number, kind in requests if kind == "nested"]
    # One key, written as a whole: the last edit stands, on top of those it had read.
    assert set(kept["nested"]["x"]) <= set(edits)
    assert bool(kept["nested"]["x"]) == bool(edits)


# ------------------------------------------------------------------ tokens


def test_concurrent_logins_of_one_principal_succeed_and_leave_one_valid_token() -> None:
    """A double click: both have read the anonymous session before either has logged in."""
    sessions = ServerSessions(SteppedStore())
    token = begun(sessions, cart=[1])
    given: list[str] = []
    twice = [visit(sessions, token, lambda session: given.append(session.login("ann"))) for _ in range(2)]
    turns = iter([0, 1, 0, 1, 0, 1, 0, 1])
    results = interleave(twice, lambda running: next((n for n in turns if n in running), running[0]))
    assert all(isinstance(result, Session) for result in results)
    assert [found(sessions, each) for each in (token, *given)].count(None) == 2
    assert {"cart": [1]} in [found(sessions, each) for each in given]


def test_concurrent_logins_of_two_principals_cannot_share_a_session() -> None:
    """A planted session: the attacker and the victim log in to it at the same time."""
    sessions = ServerSessions(SteppedStore())
    token = begun(sessions)
    both = [visit(sessions, token, lambda session, who=who: session.login(who)) for who in ("mallory", "ann")]
    turns = iter([0, 1, 0, 1, 0, 1, 0, 1])
    results = interleave(both, lambda running: next((n for n in turns if n in running), running[0]))
    assert sorted(type(result).__name__ for result in results) == ["Session", "SessionEndedError"]


def test_write_with_the_former_token_is_refused_after_a_login() -> None:
    sessions = ServerSessions(SteppedStore())
    token = begun(sessions)
    given: list[str] = []
    late = visit(sessions, token, put("late", 1))
    late.send(None)  # it asks
    late.send(None)  # it has read, and is about to write
    run(visit(sessions, token, lambda session: given.append(session.login("ann"))))
    with pytest.raises(SessionEndedError):
        run(late)
    assert found(sessions, given[0]) == {"first": True}
    # One that comes a little later is refused as well: it would give the client another session's cookie.
    with pytest.raises(SessionEndedError):
        run(visit(sessions, token, put("later", 1)))


def test_logout_everywhere_ends_a_login_that_is_being_saved() -> None:
    store = SteppedStore()
    sessions = ServerSessions(store)
    login = visit(sessions, "", lambda session: session.login("ann"))
    login.send(None)  # about to be listed
    login.send(None)  # listed, about to be created
    run(sessions.logout_everywhere("ann"))
    with pytest.raises(SessionEndedError):
        run(login)
    assert run(sessions.devices("ann")) == []


def test_endless_conflicts_raise_a_store_error() -> None:
    class Restless(SteppedStore):
        async def replace(self, handle: str, payload: bytes, *, version: int, ttl_s: float) -> Any:
            kept = await self.read(handle)
            assert kept is not None
            await super().replace(handle, kept.payload, version=kept.version, ttl_s=ttl_s)
            return await self.read(handle)

    sessions = ServerSessions(Restless())
    token = begun(sessions)
    with pytest.raises(SessionStoreError, match="64 times"):
        run(visit(sessions, token, put("a", 1)))
