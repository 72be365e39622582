"""Checks of a cached request: it spares the database, survives Redis, and shows no user what is another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from tenfold.errors import TargetError
from tenfold.settings import Settings
from tenfold.settings.verify import VerifySettings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.database.write_probe import replicas, wait_for_all_replicas
from tenfold.verify.kit.instances import hang
from tenfold.verify.kit.load_clients import LoadClients, SentRequest, status_summary
from tenfold.verify.kit.session_user import SessionUser, require_login, user_of
from tenfold.verify.kit.user_agent import UserAgent

SPARED = "cached reads need no database"
OUTAGE = "a Redis outage fails no cached read"
FOREIGN = "no user gets another's cached answer"

_READERS, _READS, _AROUND, _ROUNDS = 4, 100, 40, 3
_MOST_SHARE = 0.1  # of reads that may reach the database
_HANG_S, _HANG_TIMEOUT_S, _TIMEOUT_S = 3.0, 1.0, 5.0

# ------------------------------------------------------------------ the database away


def check_database_hang(stack: Stack, settings: Settings) -> Finding:
    """Send the cached request while every database server hangs: what reaches one gets no answer."""
    known = settings.verify
    readers = [user_of(stack, known) for _ in range(_READERS)]
    for reader in readers * _ROUNDS:  # caches are filled, on each instance
        _require_ok(reader.status(known.cached), known)
    for reader in readers:
        reader.timeout_s = _HANG_TIMEOUT_S
    servers = [server for server in stack.servers if server.kind in ("primary", "replica")]
    with hang(servers), LoadClients(_send(readers, known), clients=_READERS) as clients:
        clients.wait_for(_READS, within_s=_HANG_S)
    if replicas(stack):
        wait_for_all_replicas(stack)
    return judge_database_hang(clients.sent)


def judge_database_hang(sent: Sequence[SentRequest]) -> Finding:
    """The finding about reads while the database hung; pure."""
    failed = [one for one in sent if one.failed]
    numbers = {"reads": len(sent), "failed": len(failed)}
    if sent and len(failed) <= _MOST_SHARE * len(sent):
        claim = f"{len(sent) - len(failed)} of {len(sent)} cached reads were answered while the database hung"
        return Finding(SPARED, claim, Verdict.PASS, numbers)
    claim = f"{len(failed)} of {len(sent)} cached reads waited for a database that hung"
    remedy = "decorate what it calls with @cache.query, and look at `tenfold cache stats`"
    return Finding(SPARED, claim, Verdict.FAIL, numbers, remedy)


# ------------------------------------------------------------------ Redis away


def check_redis_outage(stack: Stack, settings: Settings) -> Finding:
    """Send the cached request while Redis hangs."""
    known = settings.verify
    readers = [UserAgent(stack.url, timeout_s=_TIMEOUT_S) for _ in range(_READERS)]
    if (status := readers[0].status(known.cached)) in (401, 403):
        claim = f"{known.cached} needs a signed-in user, whose session may be in Redis as well"
        return Finding(OUTAGE, claim, Verdict.SKIP, remedy="name a verify.cached that everybody may read")
    _require_ok(status, known)
    servers = [server for server in stack.servers if server.kind == "redis"]
    with LoadClients(_send(readers, known), clients=_READERS) as clients:
        clients.wait_for(_AROUND, within_s=10)
        with hang(servers, least_s=_HANG_S):
            pass
        clients.wait_for(_AROUND, within_s=10)
    return judge_redis_outage(clients.sent)


def judge_redis_outage(sent: Sequence[SentRequest]) -> Finding:
    """The finding about reads around a hang of Redis; pure."""
    failed = [one for one in sent if one.failed]
    numbers = {"reads": len(sent), "failed": len(failed)}
    if not failed:
        return Finding(OUTAGE, f"none of {len(sent)} reads failed while Redis hung", Verdict.PASS, numbers)
    claim = f"{len(failed)} of {len(sent)} reads failed while Redis hung ({status_summary(failed)})"
    remedy = "take what cannot be read from Redis within 0.1 s from the database, as QueryCache does"
    return Finding(OUTAGE, claim, Verdict.FAIL, numbers, remedy)


# ------------------------------------------------------------------ another user's answer


def check_foreign_answers(stack: Stack, settings: Settings) -> Finding:
    """Ask as one user and then as the other, and compare with what the other gets alone.

    The caches are empty then: Redis and the app's instances are restarted in between.
    """
    known = settings.verify
    lines = [line for line in (known.whoami, known.read) if line.startswith("GET ")]
    if not lines:
        claim = f"{known.whoami} is no GET, which alone is cached"
        return Finding(FOREIGN, claim, Verdict.SKIP, remedy="name a verify.read that is one")
    mixed = {line: _answers(stack, known, line, both=True) for line in lines}
    for server in stack.servers:
        if server.kind in ("redis", "app"):
            stack.restart(server)
    alone = {line: _answers(stack, known, line, both=False) for line in lines}
    return judge_foreign_answers(mixed, alone)


def _answers(stack: Stack, known: VerifySettings, line: str, *, both: bool) -> list[str]:
    """The second user's answers, after those of the first if ``both`` ask."""
    first, second = SessionUser(stack.url, settings=known), SessionUser(stack.url, settings=known)
    require_login(first.sign_in(), known)
    require_login(second.sign_in(as_other_user=True), known)
    found = []
    for _ in range(_ROUNDS):
        if both:
            for _ in range(_ROUNDS):
                first.request(line)
        found.append(second.request(line).text)
    return found


def judge_foreign_answers(mixed: dict[str, list[str]], alone: dict[str, list[str]]) -> Finding:
    """The finding about the second user's answers with and without another user before; pure."""
    steady = [
        line for line, answers in alone.items() if all(one == other for one, other in pairwise(answers))
    ]
    if not steady:
        claim = "the same user's answers differ from one request to the next"
        return Finding(FOREIGN, claim, Verdict.SKIP, remedy="name a verify.read whose answer stays the same")
    foreign = [line for line in steady if any(answer != alone[line][0] for answer in mixed[line])]
    numbers = {"requests": len(steady) * 2 * _ROUNDS, "foreign": len(foreign)}
    if foreign:
        claim = f"after another user's request, {foreign[0]} answered something else than to a user alone"
        remedy = "make the user a part of the key: an argument, or QueryCache(vary=…)"
        return Finding(FOREIGN, claim, Verdict.FAIL, numbers, remedy)
    claim = f"{len(steady)} requests of a user are answered the same after another user's"
    return Finding(FOREIGN, claim, Verdict.PASS, numbers)


def _send(readers: Sequence[UserAgent], known: VerifySettings) -> Callable[[int], int]:
    return lambda number: readers[number].status(known.cached)


def _require_ok(status: int, known: VerifySettings) -> None:
    if not 200 <= status < 300:
        raise TargetError(f"{known.cached} answers {status}: correct verify.cached")
