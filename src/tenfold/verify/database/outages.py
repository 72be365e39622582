"""What becomes of reads and writes when database servers end, hang, and come back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tenfold.errors import TargetError
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.database.write_probe import (
    Enter,
    Witness,
    primary,
    replicas,
    settled,
    undeclared,
    witness,
)
from tenfold.verify.kit.instances import kill, signal_all
from tenfold.verify.kit.load_clients import Crowd, Sent, statuses
from tenfold.verify.kit.useragent import UserAgent

if TYPE_CHECKING:
    from tenfold.database.settings import DatabaseSettings

OUTAGE = "replica loss fails no read"
SURVIVES = "acknowledged write survives"

Result = TypeVar("Result")
Fault = Callable[[], AbstractContextManager[None]]

_READERS = 8
_PATIENCE_S = 5.0  # a read that takes longer has failed
_AROUND = 60  # reads before a fault, during and after it
_WITHIN_S = 10.0
_HANGS_S = 4.0
_MOST = 2  # replicas that are killed one by one; the others are alike
_KILLS, _WRITES = 3, 3
_RECOVERS_S = 15.0
_PAUSE_S = 0.05


# ------------------------------------------------------------------ reads


def outage(stack: Stack, settings: DatabaseSettings, *, enter: Enter) -> Finding:
    """Whether reads go on while replicas are killed, one after the other and all at once, or hang."""
    if missing := undeclared(OUTAGE, settings, "read"):
        return missing
    readers = [enter() for _ in range(_READERS)]
    for reader in readers:
        reader.timeout_s = _PATIENCE_S
    return judged({name: _reads_during(fault, readers, settings) for name, fault in _faults(stack).items()})


def judged(sent: Mapping[str, Sequence[Sent]]) -> Finding:
    """The finding about the reads that were sent around each fault; pure."""
    failed = {name: [one for one in reads if one.failed] for name, reads in sent.items()}
    total, lost = sum(map(len, sent.values())), sum(map(len, failed.values()))
    numbers = {"reads": total, "failed": lost, "faults": len(sent)}
    if not lost:
        claim = f"none of {total} reads failed around {len(sent)} faults ({', '.join(sent)})"
        return Finding(OUTAGE, claim, Verdict.PASS, numbers)
    parts = [f"{len(reads)} at {name} ({statuses(reads)})" for name, reads in failed.items() if reads]
    claim = f"{lost} of {total} reads failed: {'; '.join(parts)}"
    remedy = "read through router.read(), which moves a read from a server that is lost to another"
    return Finding(OUTAGE, claim, Verdict.FAIL, numbers, remedy)


def _faults(stack: Stack) -> dict[str, Fault]:
    servers = replicas(stack)
    found: dict[str, Fault] = {
        f"kill of {server.name}": partial(_killed, stack, [server]) for server in servers[:_MOST]
    }
    if len(servers) > 1:
        found["kill of all"] = partial(_killed, stack, servers)
    found[f"a hang of {servers[0].name}"] = partial(_stopped, servers[0])
    return found


def _reads_during(fault: Fault, readers: Sequence[UserAgent], settings: DatabaseSettings) -> Sequence[Sent]:
    with Crowd(lambda number: readers[number].status_of(settings.read), clients=len(readers)) as crowd:
        crowd.wait_for(_AROUND, within_s=_WITHIN_S)
        with fault():
            crowd.wait_for(_AROUND, within_s=_WITHIN_S)
        crowd.wait_for(_AROUND, within_s=_WITHIN_S)
    return crowd.sent


@contextmanager
def _killed(stack: Stack, servers: Sequence[Server]) -> Iterator[None]:
    """With kill -9; started again at the end, whatever happens."""
    try:
        for server in servers:
            kill(server)
        yield
    finally:
        for server in servers:
            stack.restart(server)


@contextmanager
def _stopped(server: Server) -> Iterator[None]:
    """Its processes stand still for a while, and with them whoever waits for an answer."""
    pids = server.pids()
    until = time.monotonic() + _HANGS_S
    try:
        signal_all(pids, signal.SIGSTOP)
        yield
        time.sleep(max(until - time.monotonic(), 0.0))
    finally:
        signal_all(pids, signal.SIGCONT)


# ------------------------------------------------------------------ writes


def survives(stack: Stack, settings: DatabaseSettings, *, enter: Enter) -> Finding:
    """Whether what was acknowledged is there after a kill -9 of the primary, and the service goes on.

    The kill comes right after the answer: a write that only memory held by then is lost.
    """
    if missing := undeclared(SURVIVES, settings, "write", "read"):
        return missing
    visitor = witness(stack, settings, enter)
    longest_s = 0.0
    for kills in range(1, _KILLS + 1):
        for _ in range(_WRITES):  # the first may meet a connection that the kill before has ended
            _within(_RECOVERS_S, visitor.write)
        with _killed(stack, [primary(stack)]):
            pass
        since = time.monotonic()
        there = _within(_RECOVERS_S, visitor.sees)
        longest_s = max(longest_s, time.monotonic() - since)
        if not there and _lost(stack, visitor):
            claim = f"a write that was acknowledged was lost by kill {kills} of the primary"
            remedy = "leave synchronous_commit on where an answer says that something was stored"
            return Finding(SURVIVES, claim, Verdict.FAIL, {"kills": kills, "lost": 1}, remedy)
    numbers = {"kills": _KILLS, "lost": 0, "back_after_s": round(longest_s, 2)}
    claim = f"{_KILLS} acknowledged writes survived as many kills; answers {longest_s:.1f} s after the return"
    return Finding(SURVIVES, claim, Verdict.PASS, numbers)


def _lost(stack: Stack, visitor: Witness) -> bool:
    """Whether the last write is missing with every replica up to date: one that is late loses nothing."""
    settled(stack)
    return not _within(_RECOVERS_S, visitor.sees)


def _within(seconds: float, act: Callable[[], Result]) -> Result:
    """What ``act`` returns, once the service answers again.

    Raises:
        TargetError: it does not so soon.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return act()
        except TargetError as error:
            if time.monotonic() > deadline:
                raise TargetError(
                    f"{seconds:g} s after the primary's return, {error}; let the pool replace connections "
                    "that the server ended, as pool_options() does"
                ) from None
        time.sleep(_PAUSE_S)
