"""Proof that replicas take the reads, and that nobody sees old data for it.

What becomes of reads and writes when servers end is in ``outages``, what happens to pools in ``crowds``.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

from tenfold.database.psycopg import query_value
from tenfold.database.replay_pause import hold_back, wait_for_replicas
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.database.write_probe import Enter, asked, primary, replicas, undeclared, witness
from tenfold.verify.kit.load_clients import Crowd, statuses

if TYPE_CHECKING:
    from tenfold.database.settings import DatabaseSettings

REACH = "reads reach replicas"
OWN = "own writes are seen"
BACK = "reads never go back"

_READERS = 4
_LOAD_S = 3.0
_FLUSH_S = 12.0  # a backend that has become idle may keep what it counted for ten seconds
_FAIR = 0.25  # of an even share, at least, for each replica
_PAIRS = 20
_LINGER_S = 6.0  # longer than the timers by which reads stay on the primary: 2 s in Rails, 5 s in Makara
_PAUSE_S = 0.25
_ROUNDS, _READS = 2, 30
_ROUTER = "read through router.read(), with ConsistencyMiddleware around the app"

# ------------------------------------------------------------------ reach


def reach(stack: Stack, settings: DatabaseSettings, *, enter: Enter) -> Finding:
    """Whether the replicas take their part of the declared read's transactions, by pg_stat_database."""
    if missing := undeclared(REACH, settings, "read"):
        return missing
    readers = [enter() for _ in range(_READERS)]
    for reader in readers * 5:  # connections are opened, and what is cached for each is loaded
        asked(settings, reader)
    servers = [primary(stack), *replicas(stack)]
    before = [_transactions(server) for server in servers]
    with Crowd(lambda number: readers[number].status_of(settings.read), clients=_READERS) as crowd:
        time.sleep(_LOAD_S)
    if failed := [one for one in crowd.sent if one.failed]:
        claim = f"{len(failed)} of {len(crowd.sent)} reads failed ({statuses(failed)})"
        return Finding(REACH, claim, Verdict.FAIL, remedy="see the log of the app")
    counts = _counted(servers, before, wanted=len(crowd.sent) // 2)
    names = [server.name for server in servers]
    return shared(dict(zip(names, counts, strict=True)), len(crowd.sent), settings.replica_share)


def _transactions(server: Server) -> int:
    counted = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    return int(query_value(server.admin_url, counted))


def _counted(servers: list[Server], before: list[int], *, wanted: int) -> list[int]:
    """How many transactions each server had since ``before``, once as many as ``wanted`` were reported."""
    deadline = time.monotonic() + _FLUSH_S
    asked_before = 0
    while True:
        asked_before += 1  # each look is a transaction too
        counts = [
            max(_transactions(server) - start - asked_before, 0)
            for server, start in zip(servers, before, strict=True)
        ]
        if sum(counts) >= wanted or time.monotonic() > deadline:
            return counts
        time.sleep(_PAUSE_S)


def shared(counts: dict[str, int], reads: int, wanted: float) -> Finding:
    """The finding about who had how many transactions, the primary first; pure."""
    total = sum(counts.values())
    (_, kept), *others = counts.items()
    share = 1 - kept / total if total else 0.0
    numbers: dict[str, float | int | str] = {"reads": reads, "transactions": total, "share": round(share, 3)}
    numbers |= {name: round(count / total, 3) if total else 0 for name, count in others}
    if total < reads / 10:
        claim = (
            f"{reads} reads left {total} transactions: {REACH} cannot be judged by a request that is cached"
        )
        return Finding(REACH, claim, Verdict.SKIP, numbers, "name a database.read that asks the database")
    idle = [name for name, count in others if count < _FAIR * share * total / len(others)]
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in others)
    if share >= wanted and not idle:
        return Finding(REACH, f"{share:.0%} of {total} transactions ({shares})", Verdict.PASS, numbers)
    if share < wanted:
        claim = f"replicas took {share:.0%} of {total} transactions, {wanted:.0%} are wanted"
        return Finding(REACH, claim, Verdict.FAIL, numbers, f"{_ROUTER}, or set database.replica_share")
    claim = f"{' and '.join(idle)} took hardly any of {total} transactions ({shares})"
    return Finding(REACH, claim, Verdict.FAIL, numbers, "give every replica to DatabaseRouter")


# ------------------------------------------------------------------ own writes


def own_writes(stack: Stack, settings: DatabaseSettings, *, enter: Enter) -> Finding:
    """Whether a visitor sees each of their writes at once, and later, while no replica applies anything.

    Later, because a timer that keeps reads on the primary for a while hides what it does not solve.
    """
    if missing := undeclared(OWN, settings, "write", "read"):
        return missing
    visitor = witness(stack, settings, enter)
    missed, gone_s = 0, 0.0
    with hold_back([server.admin_url for server in replicas(stack)]):
        for _ in range(_PAIRS):
            visitor.write()
            missed += not visitor.sees()
        since = time.monotonic()
        while not missed and not gone_s and (passed := time.monotonic() - since) < _LINGER_S:
            if not visitor.sees():
                gone_s = passed
            time.sleep(_PAUSE_S)
    if missed or gone_s:
        visitor.confirm(stack)
    numbers = {"pairs": _PAIRS, "missed": missed, "gone_after_s": round(gone_s, 1)}
    if missed:
        claim = f"{missed} of {_PAIRS} writes were missing in the read that followed, with replicas held back"
    elif gone_s:
        claim = f"a write was seen at once, and missing {gone_s:.1f} s later: a timer is no proof"
    else:
        claim = f"{_PAIRS} of {_PAIRS} writes seen at once, the last for {_LINGER_S:g} s, replicas held back"
        return Finding(OWN, claim, Verdict.PASS, numbers)
    return Finding(OWN, claim, Verdict.FAIL, numbers, _ROUTER)


# ------------------------------------------------------------------ monotonic reads


def never_back(stack: Stack, settings: DatabaseSettings, *, enter: Enter) -> Finding:
    """Whether a reader who has seen somebody's write goes on seeing it while one replica lacks it."""
    if missing := undeclared(BACK, settings, "write", "read"):
        return missing
    writer = witness(stack, settings, enter)
    reads = seen = back = 0
    servers = replicas(stack)
    for late in servers * _ROUNDS:
        reader = enter()
        with hold_back([late.admin_url]):
            writer.write()
            wait_for_replicas(primary(stack).admin_url, [one.admin_url for one in servers if one is not late])
            shown = [writer.sees(reader) for _ in range(_READS)]
        reads += len(shown)
        seen += any(shown)
        back += any(one and not other for one, other in pairwise(shown))
    rounds = _ROUNDS * len(servers)
    numbers = {"readers": rounds, "reads": reads, "saw": seen, "went_back": back}
    if back:
        claim = f"{back} of {rounds} readers saw a write, and then a state without it"
        return Finding(BACK, claim, Verdict.FAIL, numbers, _ROUTER)
    if not seen:
        claim = f"no reader saw a write in {_READS} reads: nothing could go back"
        return Finding(BACK, claim, Verdict.SKIP, numbers, "use two replicas: stack.replicas = 2")
    claim = f"none of {rounds} readers went back in {reads} reads with a replica held back"
    return Finding(BACK, claim, Verdict.PASS, numbers)
