"""Checks of a slow instance and of backups, by the instances that nginx's access log names."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tenfold.settings import Settings
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.balancing.nginx_probe import NginxProbe, probe_nginx, slow_down
from tenfold.verify.kit.instances import address_of, app_servers, kill
from tenfold.verify.kit.load_clients import LoadClients

SLOW = "slow instance gets less"
BACKUP = "backup only when needed"

_MOST_SHARE = 0.7  # of its weight's share, for an instance that runs a fifth of the time
_SLOW_S = 3.0
_FEW = 50  # requests
_QUIET_S = 0.1


# ------------------------------------------------------------------ a slow instance


def check_slow_instance(stack: Stack, settings: Settings) -> Finding:
    """Stop and continue one instance in short slices for three seconds, and count its requests."""
    method = settings.balancing.method
    if method not in ("least_conn", "random_two"):
        remedy = 'set balancing.method = "least_conn" to see it'
        return Finding(SLOW, f"balancing.method is {method}", Verdict.SKIP, remedy=remedy)
    probe = probe_nginx(stack, settings)
    slow = app_servers(stack)[0]
    log = probe.open_log()
    with slow_down(slow), LoadClients(probe.send_read, clients=16, pause_s=0.0):
        time.sleep(_SLOW_S)
    counts = probe.count_reads(log.read_new(quiet_s=_QUIET_S))
    address = address_of(slow)
    return _judge_slow_instance(
        slow.name, counts[address], counts.total(), probe.weights[address] / sum(probe.weights.values())
    )


def _judge_slow_instance(name: str, count: int, total: int, fair: float) -> Finding:
    share = count / max(total, 1)
    numbers = {"requests": total, "share": round(share, 3), "fair_share": round(fair, 3)}
    claim = f"{name}, slowed to a fifth, got {share:.0%} of {total} requests; its share is {fair:.0%}"
    if total < _FEW:
        return Finding(SLOW, f"{total} requests in {_SLOW_S:g} s: too few to judge", Verdict.SKIP, numbers)
    if share < _MOST_SHARE * fair:
        return Finding(SLOW, claim, Verdict.PASS, numbers)
    remedy = 'set balancing.method = "least_conn" and see that nginx runs with it'
    return Finding(SLOW, claim, Verdict.FAIL, numbers, remedy)


# ------------------------------------------------------------------ backups


def check_backups(stack: Stack, settings: Settings) -> Finding:
    """Count what backups answer: nothing while another instance runs, everything when none does."""
    if not settings.balancing.backups:
        return Finding(BACKUP, "no backup is declared", Verdict.SKIP, remedy="set balancing.backups")
    probe = probe_nginx(stack, settings)
    ordinary = [server for server in app_servers(stack) if address_of(server) in probe.weights]
    before = _send_and_count(probe, 20 * len(ordinary))
    failed, taken = _send_without(stack, probe, ordinary)
    after = _send_and_count(probe, 20 * len(ordinary))
    numbers = {"before": before, "failed": failed, "taken": taken, "after": after}
    if before or after:
        claim = f"a backup got {before + after} requests while another instance ran"
    elif failed or not taken:
        claim = f"with all others down, {failed} requests failed and backups took {taken}"
    else:
        return Finding(
            BACKUP, f"no request before and after; {taken} of {taken} between", Verdict.PASS, numbers
        )
    remedy = "see that nginx runs with backup servers, and that balancing.tries reaches them"
    return Finding(BACKUP, claim, Verdict.FAIL, numbers, remedy)


def _send_and_count(probe: NginxProbe, requests: int) -> int:
    """Send reads; return how many of them a backup answered."""
    log = probe.open_log()
    for _ in range(requests):
        probe.send_read()
    counts = probe.count_reads(log.read_new(quiet_s=_QUIET_S))
    return sum(counts[address] for address in probe.backups)


def _send_without(stack: Stack, probe: NginxProbe, ordinary: Sequence[Server]) -> tuple[int, int]:
    """Send reads while all ordinary instances are dead; return how many failed, and how many backups took."""
    log = probe.open_log()
    try:
        for server in ordinary:
            kill(server)
        statuses = [probe.send_read() for _ in range(20)]
    finally:
        for server in ordinary:
            stack.restart(server)
    counts = probe.count_reads(log.read_new(quiet_s=_QUIET_S))
    for server in ordinary:
        probe.wait_until_used(server)
    failed = sum(not status or status >= 500 for status in statuses)
    return failed, sum(counts[address] for address in probe.backups)
