"""Proof that requests go where they should: shares, a slow instance, backups. ``faults`` has the rest.

Everything is read from nginx's access log: which instance got which request.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tenfold.balancing.skew import CHANCE, chi_squared
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.balancing.nginx_probe import Front, front, slowed
from tenfold.verify.kit.accesslog import Row
from tenfold.verify.kit.instances import address_of, app_servers, kill
from tenfold.verify.kit.load_clients import Crowd

if TYPE_CHECKING:
    from tenfold.balancing.settings import BalancingSettings

EVEN = "round robin is even"
SLOW = "slow instance gets less"
BACKUP = "backup only when needed"

_PER_INSTANCE = 60
_LESS = 0.7  # of what it would get if nobody noticed that it is slow
_SLOW_S = 3.0
_FEW = 50
_SETTLE_S = 0.1


# ------------------------------------------------------------------ shares


def even(stack: Stack, settings: BalancingSettings, *, ready_path: str) -> Finding:
    """Whether round robin gives every instance its share: a chi-squared test of the counts.

    Source of the test: Pearson, 1900; p below 0.001 is called uneven.
    """
    if settings.method != "round_robin":
        return _other_method(EVEN, settings, "round_robin")
    door = front(stack, settings, ready_path=ready_path)
    log = door.log
    wanted = _PER_INSTANCE * len(door.weights)
    with Crowd(door.reading, clients=4, pause_s=0.0) as crowd:
        crowd.wait_for(wanted, within_s=20.0)
    return spread(_answered(door, log.rows(quiet_s=_SETTLE_S)), door.weights, names(stack))


def spread(counts: Mapping[str, int], weights: Mapping[str, int], named: Mapping[str, str]) -> Finding:
    """The finding about who got how many requests; pure."""
    total, parts = sum(counts.values()), sum(weights.values())
    if not total:
        return Finding(EVEN, "no instance got a request", Verdict.FAIL, {"requests": 0}, "see nginx's log")
    expected = {address: total * weight / parts for address, weight in weights.items()}
    fit = chi_squared([counts.get(address, 0) for address in expected], list(expected.values()))
    strangers = total - sum(counts.get(address, 0) for address in weights)
    numbers = {"requests": total, "chi_squared": round(fit.statistic, 2), "p": round(fit.p, 6)}
    numbers["elsewhere"] = strangers
    shares = " : ".join(f"{counts.get(address, 0)}" for address in weights)
    if fit.p >= CHANCE and not strangers:
        return Finding(EVEN, f"{shares} of {total} requests, p = {fit.p:.2g}", Verdict.PASS, numbers)
    most = max(weights, key=lambda address: counts.get(address, 0) / weights[address])
    claim = f"{shares} of {total} requests, p = {fit.p:.2g}: most for {named.get(most, most)}"
    remedy = "compare balancing.weights with what nginx runs, and look for failed instances in its log"
    return Finding(EVEN, claim, Verdict.FAIL, numbers, remedy)


def _other_method(check: str, settings: BalancingSettings, wanted: str) -> Finding:
    claim = f"balancing.method is {settings.method}"
    return Finding(check, claim, Verdict.SKIP, remedy=f'set balancing.method = "{wanted}" to see it')


def _answered(door: Front, rows: Iterable[Row]) -> Counter[str]:
    """How many requests each instance answered."""
    return Counter(row.upstreams[-1] for row in door.ours(rows, door.read) if row.upstreams)


def names(stack: Stack) -> dict[str, str]:
    """What the instances are called, by address."""
    return {address_of(server): server.name for server in app_servers(stack)}


# ------------------------------------------------------------------ a slow instance


def slow_gets_less(stack: Stack, settings: BalancingSettings, *, ready_path: str) -> Finding:
    """Whether an instance that runs a fifth of the time gets fewer requests than its share.

    Its processes are stopped and continued in short slices for three seconds.
    """
    if settings.method not in ("least_conn", "random_two"):
        return _other_method(SLOW, settings, "least_conn")
    door = front(stack, settings, ready_path=ready_path)
    slow = app_servers(stack)[0]
    address, log = address_of(slow), door.log
    with slowed(slow), Crowd(door.reading, clients=16, pause_s=0.0):
        time.sleep(_SLOW_S)
    counts = _answered(door, log.rows(quiet_s=_SETTLE_S))
    return _share(
        slow.name, counts[address], sum(counts.values()), door.weights[address] / sum(door.weights.values())
    )


def _share(name: str, count: int, total: int, fair: float) -> Finding:
    share = count / max(total, 1)
    numbers = {"requests": total, "share": round(share, 3), "fair_share": round(fair, 3)}
    claim = f"{name}, slowed to a fifth, got {share:.0%} of {total} requests; its share is {fair:.0%}"
    if total < _FEW:
        return Finding(SLOW, f"{total} requests in {_SLOW_S:g} s: too few to judge", Verdict.SKIP, numbers)
    if share < _LESS * fair:
        return Finding(SLOW, claim, Verdict.PASS, numbers)
    remedy = 'set balancing.method = "least_conn" and see that nginx runs with it'
    return Finding(SLOW, claim, Verdict.FAIL, numbers, remedy)


# ------------------------------------------------------------------ backups


def backup(stack: Stack, settings: BalancingSettings, *, ready_path: str) -> Finding:
    """Whether backups get nothing while another instance runs, and everything when none does."""
    if not settings.backups:
        return Finding(BACKUP, "no backup is declared", Verdict.SKIP, remedy="set balancing.backups")
    door = front(stack, settings, ready_path=ready_path)
    ordinary = [server for server in app_servers(stack) if address_of(server) in door.weights]
    early = _used(door, 20 * len(ordinary))
    failed, taken = _without(stack, door, ordinary)
    late = _used(door, 20 * len(ordinary))
    numbers = {"before": early, "failed": failed, "taken": taken, "after": late}
    if early or late:
        claim = f"a backup got {early + late} requests while another instance ran"
    elif failed or not taken:
        claim = f"with all others down, {failed} requests failed and backups took {taken}"
    else:
        return Finding(
            BACKUP, f"no request before and after; {taken} of {taken} between", Verdict.PASS, numbers
        )
    remedy = "see that nginx runs with backup servers, and that balancing.tries reaches them"
    return Finding(BACKUP, claim, Verdict.FAIL, numbers, remedy)


def _used(door: Front, requests: int) -> int:
    """How many of so many requests a backup answered."""
    log = door.log
    for _ in range(requests):
        door.reading()
    counts = _answered(door, log.rows(quiet_s=_SETTLE_S))
    return sum(counts[address] for address in door.backups)


def _without(stack: Stack, door: Front, ordinary: Iterable[Server]) -> tuple[int, int]:
    """Requests that failed, and those that backups took, while all ordinary instances are dead."""
    killed = list(ordinary)
    log = door.log
    try:
        for server in killed:
            kill(server)
        statuses = [door.reading() for _ in range(20)]
    finally:
        for server in killed:
            stack.restart(server)
    counts = _answered(door, log.rows(quiet_s=_SETTLE_S))
    for server in killed:
        door.let_in_again(server)
    failed = sum(not status or status >= 500 for status in statuses)
    return failed, sum(counts[address] for address in door.backups)
