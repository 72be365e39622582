"""What happens to a session when requests overlap: a logout and a late write, writes of different keys.

Two ways to overlap. Many requests at once are left to chance, again and again. A *held* request is none of
chance: it goes past the front door, half of its body is kept back until the other request is answered.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.useragent import Answer
from tenfold.verify.sessions.target import Target, attack
from tenfold.verify.sessions.visitor import Visitor

RESURRECTION = "no session resurrection"
LOST_UPDATE = "no lost session update"

# A server that reads a session when a request begins has read it by then.
_BEGUN_S = 0.05
_JITTER_S = 0.004
_LONGEST_S = 20.0


def together(*calls: Callable[[], object]) -> None:
    """Run all at the same moment, each in a thread of its own; the first error is raised once all ended."""
    barrier = threading.Barrier(len(calls))

    def one(call: Callable[[], object]) -> None:
        barrier.wait(10)
        call()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(one, call) for call in calls]
    for future in futures:
        future.result()


# ------------------------------------------------------------------ resurrection


@attack(RESURRECTION, "logout")
def resurrection(stack: Stack, target: Target, *, rounds: int = 12) -> Finding:
    """Whether a request that was under way during a logout brings the session back."""
    if _survives_a_quiet_logout(target):
        claim = "a logout ends no session, whether others run or not: see session replay refused"
        return Finding(RESURRECTION, claim, Verdict.SKIP)
    deadline = time.monotonic() + _LONGEST_S
    ended: list[Visitor] = []
    held = 0
    while len(ended) < rounds and time.monotonic() < deadline:
        if target.settings.write and target.settings.write_body and len(ended) % 2:
            ended.append(_logout_beside_a_held_write(target))
            held += 1
        else:
            ended.append(_logout_among_requests(target))
    time.sleep(target.settings.revocation_ms / 1000)
    alive = sum(thief.signed_in() for thief in ended)
    numbers = {"rounds": len(ended), "held_writes": held, "alive": alive}
    if alive:
        claim = f"{alive} of {len(ended)} sessions came back after their logout"
        remedy = "leave a tombstone at the logout, and let a late write only replace what is there"
        return Finding(RESURRECTION, claim, Verdict.FAIL, numbers, remedy)
    how = "with requests and held writes under way" if held else "with reads under way (no sessions.write)"
    return Finding(RESURRECTION, f"{len(ended)} logouts {how}: all dead", Verdict.PASS, numbers)


def _survives_a_quiet_logout(target: Target) -> bool:
    user = target.signed_in()
    thief = target.holding(target.id_of(user))
    user.logout()
    time.sleep(target.settings.revocation_ms / 1000)
    return thief.signed_in()


def _logout_among_requests(target: Target) -> Visitor:
    user = target.signed_in()
    thief = target.holding(target.id_of(user))
    calls: list[Callable[[], object]] = [_late(user.copy().logout), user.copy().whoami]
    calls += [user.copy().whoami]
    if target.settings.write:
        calls += [
            lambda: user.copy().write("late", "1"),
            _late(lambda: user.copy().write("later", "2")),
        ]
    together(*calls)
    return thief


def _late(call: Callable[[], object]) -> Callable[[], object]:
    """``call`` after a few milliseconds at most, another while each time."""

    def later() -> None:
        time.sleep(secrets.randbelow(1000) / 1000 * _JITTER_S)
        call()

    return later


def _logout_beside_a_held_write(target: Target) -> Visitor:
    """All at one instance: whether others know the session is the business of another check."""
    user = target.signed_in(target.direct)
    thief = target.holding(target.id_of(user), target.direct)
    late = user.copy()

    def logout() -> None:
        time.sleep(_BEGUN_S)
        user.logout()

    late.write("late", secrets.token_hex(8), hold=logout)
    return thief


# ------------------------------------------------------------------ lost update


@dataclass(frozen=True, slots=True)
class _Written:
    """One write that the service took, and the browser's cookies as its answer changed them."""

    key: str
    value: str
    cookies: dict[str, str]
    answer: Answer


@attack(LOST_UPDATE, "write", "read")
def lost_update(stack: Stack, target: Target, *, rounds: int = 6, writers: int = 6) -> Finding:
    """Whether concurrent writes of different keys into one session are all there afterwards.

    A write that is refused (409, 503) is not lost: whoever sent it knows.
    """
    deadline = time.monotonic() + _LONGEST_S
    numbers = {"rounds": 0, "writes": 0, "refused": 0, "lost": 0}
    while numbers["rounds"] < rounds and time.monotonic() < deadline:
        held = numbers["rounds"] % 2 == 1 and bool(target.settings.write_body)
        user = target.signed_in(target.direct if held else "")
        taken = _write_at_once(user, writers, held=held)
        numbers["rounds"] += 1
        numbers["writes"] += writers
        numbers["refused"] += writers - len(taken)
        for write in taken:  # as a browser does, in the order of the answers
            user.cookies |= write.cookies
        numbers["lost"] += sum(not user.reads(write.key, write.value) for write in taken)
    return _finding(numbers)


def _finding(numbers: dict[str, int]) -> Finding:
    lost, taken = numbers["lost"], numbers["writes"] - numbers["refused"]
    if lost:
        claim = f"{lost} of {taken} writes that were answered with 2xx are gone"
        remedy = "merge changes key by key with compare-and-set; do not write back the whole session"
        return Finding(LOST_UPDATE, claim, Verdict.FAIL, numbers, remedy)
    if not taken:
        claim = f"none of {numbers['writes']} concurrent writes was taken"
        return Finding(
            LOST_UPDATE, claim, Verdict.FAIL, numbers, "correct sessions.write and sessions.write_body"
        )
    refused = f", {numbers['refused']} refused" if numbers["refused"] else ""
    return Finding(LOST_UPDATE, f"all of {taken} concurrent writes are there{refused}", Verdict.PASS, numbers)


def _write_at_once(user: Visitor, writers: int, *, held: bool) -> Sequence[_Written]:
    begun = threading.Barrier(writers)
    taken: list[_Written] = []

    def wait_for_all() -> None:
        begun.wait(10)
        time.sleep(_BEGUN_S)

    def write(number: int) -> None:
        one, key, value = user.copy(), f"k{number}{secrets.token_hex(3)}", secrets.token_hex(8)
        answer = one.write(key, value, hold=wait_for_all if held else None)
        if answer.ok:
            changed = {name: kept for name, kept in one.cookies.items() if user.cookies.get(name) != kept}
            taken.append(_Written(key, value, changed, answer))

    together(*(lambda number=number: write(number) for number in range(writers)))
    return taken
