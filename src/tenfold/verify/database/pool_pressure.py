"""What a crowd does to a service's pools: too many at once, and those who leave before they are answered."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tenfold.database.psycopg import query_value
from tenfold.errors import TargetError
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.database.write_probe import Enter, asked, primary, replicas, undeclared
from tenfold.verify.kit.instances import app_servers
from tenfold.verify.kit.load_clients import Crowd, Sent, statuses
from tenfold.verify.kit.useragent import UserAgent

if TYPE_CHECKING:
    from tenfold.database.settings import DatabaseSettings

BUDGET = "pools keep their budget"
RETURNED = "nothing stays checked out"

_TIMES, _MOST_CLIENTS = 10, 300
_LOAD_S = 4.0
_PATIENCE_S = 30.0
_LOOK_S = 0.1
_LEAVERS, _LONGEST_STAY_S = 8, 0.03
_LEAST_LEFT, _MOST_LEFT = 60, 600
_SETTLES_S = 5.0
_REFUSED = 429  # too many at once, said politely: 503 with Retry-After counts as this

# Connections of the service's own role; the samplers of tenfold's router are no part of its pools.
_MINE = (
    "from pg_stat_activity where backend_type = 'client backend' and datname = current_database() "
    "and usename <> current_user and application_name <> 'tenfold sampler'"
)
_OPEN = f"select count(*) {_MINE}"
_BUSY = f"select count(*) {_MINE} and state <> 'idle'"


# ------------------------------------------------------------------ too many


def budget(stack: Stack, settings: DatabaseSettings, *, enter: Enter) -> Finding:
    """Whether ten times as many clients as a pool has connections are answered, and no more opened.

    An answer that says "too many, come back" (429, or 503 with Retry-After) is one.
    """
    if missing := undeclared(BUDGET, settings, "read"):
        return missing
    clients = min(_TIMES * settings.pool_size, _MOST_CLIENTS)
    reader = enter()
    asked(settings, reader)
    with Connections([primary(stack), *replicas(stack)]) as watch:
        sent = _crowded(reader, settings, clients=clients)
    each = settings.pool_size + settings.max_overflow
    allowed = len(app_servers(stack)) * settings.engines * each
    return kept(sent, watch.most, allowed=allowed, clients=clients)


def kept(sent: Sequence[Sent], most: dict[str, int], *, allowed: int, clients: int) -> Finding:
    """The finding about what was sent and the most connections each server had; pure."""
    failed = [one for one in sent if one.failed]
    served = sum(200 <= one.status < 300 for one in sent)
    peak = max(most.values(), default=0)
    numbers = {"clients": clients, "requests": len(sent), "served": served, "failed": len(failed)}
    numbers |= {"connections": peak, "allowed": allowed}
    if failed or not served:
        claim = f"{len(failed)} of {len(sent)} reads by {clients} clients failed ({statuses(failed or sent)})"
        remedy = "give connections back sooner, or answer 503 with Retry-After: PoolMiddleware does"
    elif peak > allowed:
        where = max(most, key=lambda name: most[name])
        claim = f"{where} had {peak} connections of the service, {allowed} are declared"
        remedy = "correct database.engines, pool_size and max_overflow: tenfold doctor adds them up"
    else:
        claim = f"{clients} clients, {served} reads, none failed; {peak} of {allowed} connections"
        return Finding(BUDGET, claim, Verdict.PASS, numbers)
    return Finding(BUDGET, claim, Verdict.FAIL, numbers, remedy)


def _crowded(reader: UserAgent, settings: DatabaseSettings, *, clients: int) -> Sequence[Sent]:
    """Each client reads at least once, all for a few seconds."""
    copies = [reader.copy() for _ in range(clients)]
    for copy in copies:
        copy.timeout_s = _PATIENCE_S
    with Crowd(lambda number: _status(copies[number], settings.read), clients=clients) as crowd:
        time.sleep(_LOAD_S)
    return crowd.sent


def _status(reader: UserAgent, line: str) -> int:
    try:
        answer = reader.ask(line)
    except TargetError:
        return 0
    return _REFUSED if answer.status == 503 and answer.header("Retry-After") else answer.status


class Connections:
    """Counts the service's connections to each server, again and again, for a block."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.most = {server.name: 0 for server in servers}
        self._servers = servers
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="connections", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(_PATIENCE_S)
        if self._error is not None and error is None:
            why = " ".join(str(self._error).split())
            raise TargetError(f"the connections could not be counted: {why}") from self._error

    def _look(self) -> None:
        try:
            while not self._over.wait(_LOOK_S):
                self._count()
            self._count()
        except Exception as error:  # what was not counted is no pass
            self._error = error

    def _count(self) -> None:
        for server in self._servers:
            self.most[server.name] = max(self.most[server.name], int(query_value(server.admin_url, _OPEN)))


# ------------------------------------------------------------------ those who leave


def returned(stack: Stack, settings: DatabaseSettings, *, enter: Enter) -> Finding:
    """Whether connections come back from requests whose clients left before they were answered.

    More of them than all pools have connections, so that one lost at each would leave none.
    """
    if missing := undeclared(RETURNED, settings, "read"):
        return missing
    reader = enter()
    asked(settings, reader)
    each = settings.pool_size + settings.max_overflow
    left = 2 * len(app_servers(stack)) * settings.engines * each
    left = min(max(left, _LEAST_LEFT), _MOST_LEFT)
    _leave(reader, settings, left)
    servers = [primary(stack), *replicas(stack)]
    numbers: dict[str, float | int | str] = {"left": left}
    if busy := _still_busy(servers):
        numbers["busy"] = sum(busy.values())
        where = ", ".join(f"{count} on {name}" for name, count in busy.items())
        claim = f"{_SETTLES_S:g} s after {left} clients had left, connections were in use: {where}"
        remedy = "close the session where the work ends, with `with`, whatever becomes of the client"
        return Finding(RETURNED, claim, Verdict.FAIL, numbers, remedy)
    sent = _crowded(reader, settings, clients=settings.pool_size)
    failed = [one for one in sent if one.failed]
    numbers |= {"reads": len(sent), "failed": len(failed)}
    if failed:
        claim = f"after {left} clients left, {len(failed)} of {len(sent)} reads failed ({statuses(failed)})"
        remedy = "see who holds the connections: pool_options() names them in its errors and findings"
        return Finding(RETURNED, claim, Verdict.FAIL, numbers, remedy)
    claim = f"{left} clients left early; no connection stayed in use, {len(sent)} reads after them worked"
    return Finding(RETURNED, claim, Verdict.PASS, numbers)


def _leave(reader: UserAgent, settings: DatabaseSettings, count: int) -> None:
    """Send so many reads, and as many writes where they are declared, and hang up at random moments."""
    lines = [settings.read, settings.write] if settings.write else [settings.read]
    chance = random.Random(7)  # noqa: S311 - moments, no secrets
    stays = [chance.uniform(0, _LONGEST_STAY_S) for _ in range(count)]

    def some(number: int) -> None:
        for index in range(number, count, _LEAVERS):
            line = lines[index % len(lines)]
            body = settings.write_body if line == settings.write else ""
            reader.leave(line, body=body, values={"value": f"left {index}"}, after_s=stays[index])

    threads = [threading.Thread(target=some, args=(number,), daemon=True) for number in range(_LEAVERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE_S)


def _still_busy(servers: Sequence[Server]) -> dict[str, int]:
    """How many of the service's connections are in use at each server after a while without requests."""
    deadline = time.monotonic() + _SETTLES_S
    while busy := {server.name: count for server in servers if (count := _busy(server))}:
        if time.monotonic() > deadline:
            break
        time.sleep(_LOOK_S)
    return busy


def _busy(server: Server) -> int:
    return int(query_value(server.admin_url, _BUSY))
