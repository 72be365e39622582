"""Checks of requests while an instance is killed or replaced under load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from tenfold.settings import Settings
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.balancing.nginx_probe import NginxProbe, entries_of, probe_nginx
from tenfold.verify.kit.access_log import LogEntry
from tenfold.verify.kit.instances import address_of, app_servers, kill
from tenfold.verify.kit.load_clients import LoadClients, SentRequest, status_summary

KILLED = "kill loses no request"
REPEATED = "no POST carried out twice"
REPLACED = "rolling replacement clean"

Send = Callable[[int], int]

_CLIENTS = 8
_AROUND = 80  # requests before a fault, and again after it
_WITHIN_S = 10.0
_QUIET_S = 0.15
_MOST_INSTANCES = 3  # that are killed; the others are alike


def check_kill(stack: Stack, settings: Settings) -> Finding:
    """Send reads while one instance after the other is killed with -9: none may fail."""
    probe = probe_nginx(stack, settings)
    servers = _ordinary_instances(stack, probe)
    sent = [one for server in servers for one in _send_through_kill(probe, server, probe.send_read)]
    failed = [one for one in sent if one.failed]
    numbers = {"requests": len(sent), "failed": len(failed), "kills": len(servers)}
    if failed:
        claim = f"{len(failed)} of {len(sent)} requests failed around a kill -9 ({status_summary(failed)})"
        remedy = "let nginx pass them on: balancing.tries of 2 or more, and two instances at least"
        return Finding(KILLED, claim, Verdict.FAIL, numbers, remedy)
    claim = f"none of {len(sent)} requests failed around {len(servers)} kills"
    return Finding(KILLED, claim, Verdict.PASS, numbers)


def check_repeated_writes(stack: Stack, settings: Settings) -> Finding:
    """Send writes while instances are killed: none may reach two instances, nor a client fail twice in a row.

    The write that an instance was at work on when it was killed fails: whether it was carried out is unknown.
    """
    probe = probe_nginx(stack, settings)
    method = probe.write.partition(" ")[0]
    if method not in ("POST", "PATCH"):
        claim = f"verify.write is a {method}, which may be sent twice"
        return Finding(REPEATED, claim, Verdict.SKIP, remedy="set verify.write to a POST or a PATCH")
    log = probe.open_log()
    failures: list[Counter[int]] = []
    for server in _ordinary_instances(stack, probe):
        sent = _send_through_kill(probe, server, probe.send_write)
        failures.append(Counter(one.client for one in sent if one.failed))
    return judge_writes(entries_of(probe.write, log.read_new(quiet_s=_QUIET_S)), failures)


def judge_writes(entries: Sequence[LogEntry], failures: Sequence[Counter[int]]) -> Finding:
    """The finding from nginx's log and, for each kill, the number of failures of each client; pure."""
    twice = sum(entry.reached_several for entry in entries)
    failed = sum(counts.total() for counts in failures)
    most = max((count for counts in failures for count in counts.values()), default=0)
    numbers = {"requests": len(entries), "kills": len(failures), "failed": failed}
    numbers |= {"worst": most, "twice": twice}
    if twice:
        claim = f"{twice} of {len(entries)} requests were sent to a second instance after a first had them"
        remedy = "take non_idempotent out of proxy_next_upstream"
    elif most > 1:
        claim = f"a client failed {most} times in a row around one kill"
        remedy = "let nginx pass them on: balancing.tries of 2 or more, balancing.max_fails of 1 to 3"
    elif not entries:
        claim, remedy = "no request reached nginx", "correct verify.write"
    else:
        claim = f"{failed} of {len(entries)} failed around {len(failures)} kills, none was sent twice"
        return Finding(REPEATED, claim, Verdict.PASS, numbers)
    return Finding(REPEATED, claim, Verdict.FAIL, numbers, remedy)


def check_replacement(stack: Stack, settings: Settings) -> Finding:
    """Send reads and writes while instances are replaced one after the other: none may fail."""
    probe = probe_nginx(stack, settings)
    sends = [probe.send_read, probe.send_write] if probe.write else [probe.send_read]
    servers = app_servers(stack)[:_MOST_INSTANCES]
    sent = _send_through(sends, lambda: [stack.replace(server) for server in servers])
    failed = [one for one in sent if one.failed]
    numbers = {"requests": len(sent), "failed": len(failed), "replaced": len(servers)}
    if failed:
        statuses = status_summary(failed)
        claim = f"{len(failed)} of {len(sent)} requests failed while instances were replaced ({statuses})"
        remedy = "raise balancing.drain_timeout_s above the longest request, and let the app end on SIGTERM"
        return Finding(REPLACED, claim, Verdict.FAIL, numbers, remedy)
    kinds = "reads" if len(sends) == 1 else "reads and writes"
    claim = f"{len(servers)} replaced, none of {len(sent)} {kinds} failed"
    return Finding(REPLACED, claim, Verdict.PASS, numbers)


def _ordinary_instances(stack: Stack, probe: NginxProbe) -> list[Server]:
    """The instances that are no backups; three of them at most."""
    return [server for server in app_servers(stack) if address_of(server) in probe.weights][:_MOST_INSTANCES]


def _send_through_kill(probe: NginxProbe, server: Server, send: Send) -> Sequence[SentRequest]:
    """Send load before, during and after a kill; afterwards the instance runs and gets requests again."""
    try:
        return _send_through([send], lambda: kill(server))
    finally:
        probe.stack.restart(server)
        probe.wait_until_used(server)


def _send_through(sends: Sequence[Send], fault: Callable[[], object]) -> Sequence[SentRequest]:
    with ExitStack() as running:
        groups = [running.enter_context(LoadClients(one, clients=_CLIENTS // len(sends))) for one in sends]
        for clients in groups:
            clients.wait_for(_AROUND, within_s=_WITHIN_S)
        fault()
        for clients in groups:
            clients.wait_for(_AROUND, within_s=_WITHIN_S)
    return [one for clients in groups for one in clients.sent]
