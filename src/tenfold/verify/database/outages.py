"""Checks of reads and writes while database servers are killed, hang, and come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TypeVar

from tenfold.errors import TargetError
from tenfold.settings import Settings
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.database.write_probe import (
    WriteProbe,
    primary,
    probe_writes,
    replicas,
    wait_for_all_replicas,
)
from tenfold.verify.kit.instances import hang, kill
from tenfold.verify.kit.load_clients import LoadClients, SentRequest, status_summary
from tenfold.verify.kit.session_user import user_of
from tenfold.verify.kit.user_agent import UserAgent

OUTAGE = "replica loss fails no read"
SURVIVES = "acknowledged write survives"

Result = TypeVar("Result")
Fault = Callable[[], AbstractContextManager[None]]

_READERS = 8
_READ_TIMEOUT_S = 5.0  # a read that takes longer has failed
_AROUND = 60  # reads before a fault, during and after it
_WITHIN_S = 10.0
_HANGS_S = 4.0
_MOST = 2  # replicas that are killed one by one; the others are alike
_KILLS, _WRITES = 3, 3
_RECOVERS_S = 15.0
_PAUSE_S = 0.05


# ------------------------------------------------------------------ reads


def check_replica_loss(stack: Stack, settings: Settings) -> Finding:
    """Send reads while replicas are killed, one after the other and all at once, and while one hangs."""
    readers = [user_of(stack, settings.verify) for _ in range(_READERS)]
    for reader in readers:
        reader.timeout_s = _READ_TIMEOUT_S
    line = settings.verify.read
    return judge_outages({name: _read_during(fault, readers, line) for name, fault in _faults(stack).items()})


def judge_outages(sent: Mapping[str, Sequence[SentRequest]]) -> Finding:
    """The finding about the reads that were sent around each fault; pure."""
    failed = {name: [one for one in reads if one.failed] for name, reads in sent.items()}
    total, lost = sum(map(len, sent.values())), sum(map(len, failed.values()))
    numbers = {"reads": total, "failed": lost, "faults": len(sent)}
    if not lost:
        claim = f"none of {total} reads failed around {len(sent)} faults ({', '.join(sent)})"
        return Finding(OUTAGE, claim, Verdict.PASS, numbers)
    parts = [f"{len(reads)} at {name} ({status_summary(reads)})" for name, reads in failed.items() if reads]
    claim = f"{lost} of {total} reads failed: {'; '.join(parts)}"
    remedy = "read through router.read(), which moves a read from a server that is lost to another"
    return Finding(OUTAGE, claim, Verdict.FAIL, numbers, remedy)


def _faults(stack: Stack) -> dict[str, Fault]:
    servers = replicas(stack)
    found: dict[str, Fault] = {
        f"kill of {server.name}": partial(_kill_servers, stack, [server]) for server in servers[:_MOST]
    }
    if len(servers) > 1:
        found["kill of all"] = partial(_kill_servers, stack, servers)
    found[f"a hang of {servers[0].name}"] = partial(hang, servers[:1], least_s=_HANGS_S)
    return found


def _read_during(fault: Fault, readers: Sequence[UserAgent], line: str) -> Sequence[SentRequest]:
    with LoadClients(lambda number: readers[number].status(line), clients=len(readers)) as clients:
        clients.wait_for(_AROUND, within_s=_WITHIN_S)
        with fault():
            clients.wait_for(_AROUND, within_s=_WITHIN_S)
        clients.wait_for(_AROUND, within_s=_WITHIN_S)
    return clients.sent


@contextmanager
def _kill_servers(stack: Stack, servers: Sequence[Server]) -> Iterator[None]:
    """Kill servers with -9 for a block; start them again afterwards."""
    try:
        for server in servers:
            kill(server)
        yield
    finally:
        for server in servers:
            stack.restart(server)


# ------------------------------------------------------------------ writes


def check_primary_kill(stack: Stack, settings: Settings) -> Finding:
    """Kill the primary with -9 right after an acknowledged write: the write and the service have to survive.

    A write that only memory held when it was acknowledged is lost.
    """
    probe = probe_writes(stack, settings.verify)
    longest_s = 0.0
    for kills in range(1, _KILLS + 1):
        for _ in range(_WRITES):  # the first may meet a connection that the kill before has ended
            _retry(_RECOVERS_S, probe.write)
        with _kill_servers(stack, [primary(stack)]):
            pass
        since = time.monotonic()
        visible = _retry(_RECOVERS_S, probe.is_visible)
        longest_s = max(longest_s, time.monotonic() - since)
        if not visible and _is_lost(stack, probe):
            claim = f"a write that was acknowledged was lost by kill {kills} of the primary"
            remedy = "leave synchronous_commit on where an answer says that something was stored"
            return Finding(SURVIVES, claim, Verdict.FAIL, {"kills": kills, "lost": 1}, remedy)
    numbers = {"kills": _KILLS, "lost": 0, "back_after_s": round(longest_s, 2)}
    claim = f"{_KILLS} acknowledged writes survived as many kills; answers {longest_s:.1f} s after the return"
    return Finding(SURVIVES, claim, Verdict.PASS, numbers)


def _is_lost(stack: Stack, probe: WriteProbe) -> bool:
    """Return whether the last write is missing with every replica up to date: a late one loses nothing."""
    wait_for_all_replicas(stack)
    return not _retry(_RECOVERS_S, probe.is_visible)


def _retry(seconds: float, act: Callable[[], Result]) -> Result:
    """Call ``act`` until the service answers; return its result.

    Raises:
        TargetError: the service does not answer within ``seconds``.
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
