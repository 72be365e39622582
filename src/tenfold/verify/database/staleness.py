"""Checks of reads from replicas: they take their share, show own writes, and never go back in time."""

from __future__ import annotations

import time
from itertools import pairwise

from tenfold.database.psycopg import query_value
from tenfold.database.replay_pause import hold_back, wait_for_replicas
from tenfold.settings import Settings
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.database.write_probe import primary, probe_writes, replicas, send_read
from tenfold.verify.kit.load_clients import LoadClients, status_summary
from tenfold.verify.kit.session_user import user_of

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

# ------------------------------------------------------------------ the replicas' share


def check_replica_share(stack: Stack, settings: Settings) -> Finding:
    """Send reads and compare the transactions of all servers in pg_stat_database."""
    known = settings.verify
    readers = [user_of(stack, known) for _ in range(_READERS)]
    for reader in readers * 5:  # connections are opened, and what is cached for each is loaded
        send_read(known, reader)
    servers = [primary(stack), *replicas(stack)]
    before = [_transactions(server) for server in servers]
    with LoadClients(lambda number: readers[number].status(known.read), clients=_READERS) as clients:
        time.sleep(_LOAD_S)
    sent = clients.sent
    if failed := [one for one in sent if one.failed]:
        claim = f"{len(failed)} of {len(sent)} reads failed ({status_summary(failed)})"
        return Finding(REACH, claim, Verdict.FAIL, remedy="see the log of the app")
    counts = _count_since(before, servers, wanted=len(sent) // 2)
    names = [server.name for server in servers]
    return judge_replica_share(dict(zip(names, counts, strict=True)), len(sent), known.replica_share)


def _transactions(server: Server) -> int:
    query = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    return int(query_value(server.admin_url, query))


def _count_since(before: list[int], servers: list[Server], *, wanted: int) -> list[int]:
    """The transactions of each server since ``before``, once ``wanted`` of them are reported."""
    deadline = time.monotonic() + _FLUSH_S
    own = 0
    while True:
        own += 1  # each of these queries is a transaction too
        counts = [
            max(_transactions(server) - start - own, 0) for server, start in zip(servers, before, strict=True)
        ]
        if sum(counts) >= wanted or time.monotonic() > deadline:
            return counts
        time.sleep(_PAUSE_S)


def judge_replica_share(counts: dict[str, int], reads: int, wanted: float) -> Finding:
    """The finding about the transactions of each server, the primary first; pure."""
    total = sum(counts.values())
    (_, kept), *others = counts.items()
    share = 1 - kept / total if total else 0.0
    numbers: dict[str, float | int | str] = {"reads": reads, "transactions": total, "share": round(share, 3)}
    numbers |= {name: round(count / total, 3) if total else 0 for name, count in others}
    if total < reads / 10:
        claim = (
            f"{reads} reads left {total} transactions: {REACH} cannot be judged by a request that is cached"
        )
        return Finding(REACH, claim, Verdict.SKIP, numbers, "name a verify.read that queries the database")
    idle = [name for name, count in others if count < _FAIR * share * total / len(others)]
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in others)
    if share >= wanted and not idle:
        return Finding(REACH, f"{share:.0%} of {total} transactions ({shares})", Verdict.PASS, numbers)
    if share < wanted:
        claim = f"replicas took {share:.0%} of {total} transactions, {wanted:.0%} are wanted"
        return Finding(REACH, claim, Verdict.FAIL, numbers, f"{_ROUTER}, or set verify.replica_share")
    claim = f"{' and '.join(idle)} took hardly any of {total} transactions ({shares})"
    return Finding(REACH, claim, Verdict.FAIL, numbers, "give every replica to DatabaseRouter")


# ------------------------------------------------------------------ own writes


def check_own_writes(stack: Stack, settings: Settings) -> Finding:
    """Write and read while no replica applies anything: each write has to be visible at once, and later.

    Later, because a timer that keeps reads on the primary for a while only hides a stale read.
    """
    probe = probe_writes(stack, settings.verify)
    missed, gone_s = 0, 0.0
    with hold_back([server.admin_url for server in replicas(stack)]):
        for _ in range(_PAIRS):
            probe.write()
            missed += not probe.is_visible()
        since = time.monotonic()
        while not missed and not gone_s and (passed := time.monotonic() - since) < _LINGER_S:
            if not probe.is_visible():
                gone_s = passed
            time.sleep(_PAUSE_S)
    if missed or gone_s:
        probe.require_visible(stack)
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


def check_monotonic_reads(stack: Stack, settings: Settings) -> Finding:
    """Hold one replica back: a reader that has seen another client's write has to go on seeing it."""
    writer = probe_writes(stack, settings.verify)
    reads = seen = back = 0
    servers = replicas(stack)
    for late in servers * _ROUNDS:
        reader = user_of(stack, settings.verify)
        with hold_back([late.admin_url]):
            writer.write()
            wait_for_replicas(primary(stack).admin_url, [one.admin_url for one in servers if one is not late])
            visible = [writer.is_visible(reader) for _ in range(_READS)]
        reads += len(visible)
        seen += any(visible)
        back += any(one and not other for one, other in pairwise(visible))
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
