"""Checks of overlapping requests of one session: a logout and a late write, writes of different keys.

Requests overlap in two ways: many at once, by chance, again and again; and *held*, where a request goes past
nginx and the second half of its body is sent only when the other request is answered.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.session_user import SessionUser
from tenfold.verify.sessions.target import SessionTarget, find_target

RESURRECTION = "no session resurrection"
LOST_UPDATE = "no lost session update"

# By then a server that reads the session at the beginning of a request has read it.
_BEGUN_S = 0.05
_JITTER_S = 0.004
_LONGEST_S = 20.0


def run_together(*calls: Callable[[], object]) -> None:
    """Call all at the same moment, each in its own thread; raise the first error once all have ended."""
    barrier = threading.Barrier(len(calls))

    def one(call: Callable[[], object]) -> None:
        barrier.wait(10)
        call()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(one, call) for call in calls]
    for future in futures:
        future.result()


# ------------------------------------------------------------------ resurrection


def check_resurrection(stack: Stack, settings: Settings, *, rounds: int = 12) -> Finding:
    """Sign out while other requests of the session run: none of them may bring the session back."""
    target = find_target(stack, settings.verify)
    if _survives_logout(target):
        claim = "a logout ends no session, whether others run or not: see session replay refused"
        return Finding(RESURRECTION, claim, Verdict.SKIP)
    deadline = time.monotonic() + _LONGEST_S
    thieves: list[SessionUser] = []
    held = 0
    while len(thieves) < rounds and time.monotonic() < deadline:
        if target.settings.session_write and target.settings.session_write_body and len(thieves) % 2:
            thieves.append(_sign_out_during_held_write(target))
            held += 1
        else:
            thieves.append(_sign_out_among_requests(target))
    time.sleep(target.settings.revocation_ms / 1000)
    alive = sum(thief.is_signed_in() for thief in thieves)
    numbers = {"rounds": len(thieves), "held_writes": held, "alive": alive}
    if alive:
        claim = f"{alive} of {len(thieves)} sessions came back after their logout"
        remedy = "leave a tombstone at the logout, and let a late write only replace what is there"
        return Finding(RESURRECTION, claim, Verdict.FAIL, numbers, remedy)
    how = (
        "with requests and held writes under way"
        if held
        else "with reads under way (no verify.session_write)"
    )
    return Finding(RESURRECTION, f"{len(thieves)} logouts {how}: all dead", Verdict.PASS, numbers)


def _survives_logout(target: SessionTarget) -> bool:
    user = target.signed_in_user()
    thief = target.user_with_id(target.session_id(user))
    user.sign_out()
    time.sleep(target.settings.revocation_ms / 1000)
    return thief.is_signed_in()


def _sign_out_among_requests(target: SessionTarget) -> SessionUser:
    user = target.signed_in_user()
    thief = target.user_with_id(target.session_id(user))
    calls: list[Callable[[], object]] = [_late(user.copy().sign_out), user.copy().whoami]
    calls += [user.copy().whoami]
    if target.settings.session_write:
        calls += [
            lambda: user.copy().write("late", "1"),
            _late(lambda: user.copy().write("later", "2")),
        ]
    run_together(*calls)
    return thief


def _late(call: Callable[[], object]) -> Callable[[], object]:
    """``call`` after a random pause of a few milliseconds at most."""

    def later() -> None:
        time.sleep(secrets.randbelow(1000) / 1000 * _JITTER_S)
        call()

    return later


def _sign_out_during_held_write(target: SessionTarget) -> SessionUser:
    """Send everything to one instance: the check of affinity is about the others."""
    user = target.signed_in_user(target.direct)
    thief = target.user_with_id(target.session_id(user), target.direct)
    late = user.copy()

    def sign_out() -> None:
        time.sleep(_BEGUN_S)
        user.sign_out()

    late.write("late", secrets.token_hex(8), at_half_body=sign_out)
    return thief


# ------------------------------------------------------------------ lost update


@dataclass(frozen=True, slots=True)
class _AcceptedWrite:
    """One write that was answered with 2xx, and the cookies that its answer changed."""

    key: str
    value: str
    cookies: dict[str, str]


def check_lost_update(stack: Stack, settings: Settings, *, rounds: int = 6, writers: int = 6) -> Finding:
    """Write different keys of one session at the same time: all have to be there afterwards.

    A write that is refused (409, 503) is not lost: its client knows.
    """
    target = find_target(stack, settings.verify)
    deadline = time.monotonic() + _LONGEST_S
    numbers = {"rounds": 0, "writes": 0, "refused": 0, "lost": 0}
    while numbers["rounds"] < rounds and time.monotonic() < deadline:
        held = numbers["rounds"] % 2 == 1 and bool(target.settings.session_write_body)
        user = target.signed_in_user(target.direct if held else "")
        accepted = _write_together(user, writers, held=held)
        numbers["rounds"] += 1
        numbers["writes"] += writers
        numbers["refused"] += writers - len(accepted)
        for write in accepted:  # as a browser does, in the order of the answers
            user.cookies |= write.cookies
        numbers["lost"] += sum(not user.can_read(write.key, write.value) for write in accepted)
    return _judge_writes(numbers)


def _judge_writes(numbers: dict[str, int]) -> Finding:
    lost, taken = numbers["lost"], numbers["writes"] - numbers["refused"]
    if lost:
        claim = f"{lost} of {taken} writes that were answered with 2xx are gone"
        remedy = "merge changes key by key with compare-and-set; do not write back the whole session"
        return Finding(LOST_UPDATE, claim, Verdict.FAIL, numbers, remedy)
    if not taken:
        claim = f"none of {numbers['writes']} concurrent writes was taken"
        return Finding(
            LOST_UPDATE,
            claim,
            Verdict.FAIL,
            numbers,
            "correct verify.session_write and verify.session_write_body",
        )
    refused = f", {numbers['refused']} refused" if numbers["refused"] else ""
    return Finding(LOST_UPDATE, f"all of {taken} concurrent writes are there{refused}", Verdict.PASS, numbers)


def _write_together(user: SessionUser, writers: int, *, held: bool) -> Sequence[_AcceptedWrite]:
    begun = threading.Barrier(writers)
    accepted: list[_AcceptedWrite] = []

    def wait_for_all() -> None:
        begun.wait(10)
        time.sleep(_BEGUN_S)

    def write(number: int) -> None:
        one, key, value = user.copy(), f"k{number}{secrets.token_hex(3)}", secrets.token_hex(8)
        answer = one.write(key, value, at_half_body=wait_for_all if held else None)
        if answer.ok:
            changed = {name: kept for name, kept in one.cookies.items() if user.cookies.get(name) != kept}
            accepted.append(_AcceptedWrite(key, value, changed))

    run_together(*(lambda number=number: write(number) for number in range(writers)))
    return accepted
