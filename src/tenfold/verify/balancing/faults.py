"""What becomes of requests when an instance ends under load: killed without warning, or replaced in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.balancing.nginx_probe import Front, front
from tenfold.verify.kit.accesslog import Row
from tenfold.verify.kit.instances import address_of, app_servers, kill
from tenfold.verify.kit.load_clients import Crowd, Request, Sent, statuses

if TYPE_CHECKING:
    from tenfold.balancing.settings import BalancingSettings

KILLED = "kill loses no request"
REPEATED = "no POST carried out twice"
REPLACED = "rolling replacement clean"

_CLIENTS = 8
_AROUND = 80  # requests before a fault, and again after it
_WITHIN_S = 10.0
_SETTLE_S = 0.15
_MOST = 3  # instances; the others are alike


def killed(stack: Stack, settings: BalancingSettings, *, ready_path: str) -> Finding:
    """Whether no idempotent request fails while one instance after the other is killed with -9 under load."""
    door = front(stack, settings, ready_path=ready_path)
    sent = [one for server in _ordinary(stack, door) for one in _through_kill(door, server, door.read)]
    failed = [one for one in sent if one.failed]
    numbers = {"requests": len(sent), "failed": len(failed), "kills": len(_ordinary(stack, door))}
    if failed:
        claim = f"{len(failed)} of {len(sent)} requests failed around a kill -9 ({statuses(failed)})"
        remedy = "let nginx pass them on: balancing.tries of 2 or more, and two instances at least"
        return Finding(KILLED, claim, Verdict.FAIL, numbers, remedy)
    claim = f"none of {len(sent)} requests failed around {numbers['kills']} kills"
    return Finding(KILLED, claim, Verdict.PASS, numbers)


def repeated(stack: Stack, settings: BalancingSettings, *, ready_path: str) -> Finding:
    """Whether a kill -9 costs each client one request that is not idempotent at most, and none is sent twice.

    The one that was under way in the killed instance cannot be saved: nobody knows how far it came.
    """
    if not settings.probe_write:
        remedy = 'set balancing.probe_write, for example probe_write = "POST /api/orders"'
        return Finding(REPEATED, "balancing.probe_write is not set", Verdict.SKIP, remedy=remedy)
    door = front(stack, settings, ready_path=ready_path)
    write = Request(settings.probe_write, settings.probe_write_body)
    log = door.log
    worst: list[Counter[int]] = []
    for server in _ordinary(stack, door):
        sent = _through_kill(door, server, write)
        worst.append(Counter(one.client for one in sent if one.failed))
    return judged(door.ours(log.rows(quiet_s=_SETTLE_S), write), worst)


def judged(rows: Sequence[Row], failures: Sequence[Counter[int]]) -> Finding:
    """The finding from nginx's rows and, for each kill, how often each client failed; pure."""
    twice = sum(row.repeated for row in rows)
    failed = sum(counts.total() for counts in failures)
    most = max((count for counts in failures for count in counts.values()), default=0)
    numbers = {"requests": len(rows), "kills": len(failures), "failed": failed, "worst": most, "twice": twice}
    if twice:
        claim = f"{twice} of {len(rows)} requests were sent to a second instance after a first had them"
        remedy = "take non_idempotent out of proxy_next_upstream"
    elif most > 1:
        claim = f"a client failed {most} times in a row around one kill"
        remedy = "let nginx pass them on: balancing.tries of 2 or more, balancing.max_fails of 1 to 3"
    elif not rows:
        claim, remedy = "no request reached nginx", "correct balancing.probe_write"
    else:
        claim = f"{failed} of {len(rows)} failed around {len(failures)} kills, none was sent twice"
        return Finding(REPEATED, claim, Verdict.PASS, numbers)
    return Finding(REPEATED, claim, Verdict.FAIL, numbers, remedy)


def replaced(stack: Stack, settings: BalancingSettings, *, ready_path: str) -> Finding:
    """Whether replacing instances one after the other fails no request, those that write included."""
    door = front(stack, settings, ready_path=ready_path)
    requests = [door.read]
    if settings.probe_write:
        requests.append(Request(settings.probe_write, settings.probe_write_body))
    servers = app_servers(stack)[:_MOST]
    sent = _through(door, requests, lambda: [stack.replace(server) for server in servers])
    failed = [one for one in sent if one.failed]
    numbers = {"requests": len(sent), "failed": len(failed), "replaced": len(servers)}
    if failed:
        claim = (
            f"{len(failed)} of {len(sent)} requests failed while instances were replaced ({statuses(failed)})"
        )
        remedy = "raise balancing.drain_timeout_s above the longest request, and let the app end on SIGTERM"
        return Finding(REPLACED, claim, Verdict.FAIL, numbers, remedy)
    kinds = "reads" if len(requests) == 1 else "reads and writes"
    claim = f"{len(servers)} replaced, none of {len(sent)} {kinds} failed"
    return Finding(REPLACED, claim, Verdict.PASS, numbers)


def _ordinary(stack: Stack, door: Front) -> list[Server]:
    """The instances that get requests every day; three of them at most."""
    return [server for server in app_servers(stack) if address_of(server) in door.weights][:_MOST]


def _through_kill(door: Front, server: Server, request: Request) -> Sequence[Sent]:
    """Load before, during and after a kill; the instance is back, and gets requests, at the end."""
    try:
        return _through(door, [request], lambda: kill(server))
    finally:
        door.stack.restart(server)
        door.let_in_again(server)


def _through(door: Front, requests: Sequence[Request], fault: Callable[[], object]) -> Sequence[Sent]:
    with ExitStack() as load:
        clients = _CLIENTS // len(requests)
        crowds = [load.enter_context(Crowd(partial(_sent, one, door), clients=clients)) for one in requests]
        _settled(crowds)
        fault()
        _settled(crowds)
    return [one for crowd in crowds for one in crowd.sent]


def _sent(request: Request, door: Front, _: int) -> int:
    return request.send(door.stack.url)


def _settled(crowds: Sequence[Crowd]) -> None:
    for crowd in crowds:
        crowd.wait_for(_AROUND, within_s=_WITHIN_S)
