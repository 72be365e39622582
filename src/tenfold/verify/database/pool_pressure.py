"""Checks of connection pools under many clients, and under clients that hang up before the answer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from tenfold.database.psycopg import query_value
from tenfold.errors import TargetError
from tenfold.measure.machine.sampling_thread import SamplingThread
from tenfold.settings import Settings
from tenfold.settings.verify import VerifySettings
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.database.write_probe import primary, replicas, send_read
from tenfold.verify.kit.instances import app_servers
from tenfold.verify.kit.load_clients import LoadClients, SentRequest, status_summary
from tenfold.verify.kit.session_user import user_of
from tenfold.verify.kit.user_agent import UserAgent

BUDGET = "pools keep their budget"
RETURNED = "nothing stays checked out"

_TIMES, _MOST_CLIENTS = 10, 300
_LOAD_S = 4.0
_TIMEOUT_S = 30.0
_POLL_S = 0.1
_LEAVERS, _LONGEST_STAY_S = 8, 0.03
_LEAST_LEFT, _MOST_LEFT = 60, 600
_RETURN_S = 5.0
_REFUSED = 429  # an orderly refusal; 503 with Retry-After counts as one

# Connections of the service's own role; the samplers of tenfold's router are no part of its pools.
_MINE = (
    "from pg_stat_activity where backend_type = 'client backend' and datname = current_database() "
    "and usename <> current_user and application_name <> 'tenfold sampler'"
)
_OPEN = f"select count(*) {_MINE}"
_BUSY = f"select count(*) {_MINE} and state <> 'idle'"


# ------------------------------------------------------------------ the budget


def check_pool_budget(stack: Stack, settings: Settings) -> Finding:
    """Send reads from ten times as many clients as a pool has connections; count what the service opens.

    An orderly refusal (429, or 503 with Retry-After) is an answer.
    """
    database = settings.database
    clients = min(_TIMES * database.pool_size, _MOST_CLIENTS)
    reader = user_of(stack, settings.verify)
    send_read(settings.verify, reader)
    with ConnectionPeak([primary(stack), *replicas(stack)]) as peak:
        sent = _read_from_many(reader, settings.verify.read, clients=clients)
    each = database.pool_size + database.max_overflow
    allowed = len(app_servers(stack)) * database.engines * each
    return judge_pool_budget(sent, peak.most, allowed=allowed, clients=clients)


def judge_pool_budget(
    sent: Sequence[SentRequest], most: dict[str, int], *, allowed: int, clients: int
) -> Finding:
    """The finding about the reads and the most connections each server had; pure."""
    failed = [one for one in sent if one.failed]
    served = sum(200 <= one.status < 300 for one in sent)
    peak = max(most.values(), default=0)
    numbers = {"clients": clients, "requests": len(sent), "served": served, "failed": len(failed)}
    numbers |= {"connections": peak, "allowed": allowed}
    if failed or not served:
        statuses = status_summary(failed or sent)
        claim = f"{len(failed)} of {len(sent)} reads by {clients} clients failed ({statuses})"
        remedy = "give connections back sooner, or answer 503 with Retry-After: PoolMiddleware does"
    elif peak > allowed:
        where = max(most, key=lambda name: most[name])
        claim = f"{where} had {peak} connections of the service, {allowed} are declared"
        remedy = "correct database.engines, pool_size and max_overflow: tenfold doctor adds them up"
    else:
        claim = f"{clients} clients, {served} reads, none failed; {peak} of {allowed} connections"
        return Finding(BUDGET, claim, Verdict.PASS, numbers)
    return Finding(BUDGET, claim, Verdict.FAIL, numbers, remedy)


def _read_from_many(reader: UserAgent, line: str, *, clients: int) -> Sequence[SentRequest]:
    """Send reads from many clients for a few seconds, at least one from each."""
    copies = [reader.copy() for _ in range(clients)]
    for copy in copies:
        copy.timeout_s = _TIMEOUT_S
    with LoadClients(lambda number: _status(copies[number], line), clients=clients) as load:
        time.sleep(_LOAD_S)
    return load.sent


def _status(reader: UserAgent, line: str) -> int:
    try:
        answer = reader.request(line)
    except TargetError:
        return 0
    return _REFUSED if answer.status == 503 and answer.header("Retry-After") else answer.status


class ConnectionPeak(SamplingThread):
    """The most connections of the service to each server during a ``with`` block, by polling."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.most = {server.name: 0 for server in servers}
        self._servers = servers
        self._error: Exception | None = None
        super().__init__(name="connections", join_s=_TIMEOUT_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._error is not None and error is None:
            why = " ".join(str(self._error).split())
            raise TargetError(f"the connections could not be counted: {why}") from self._error

    def _run(self) -> None:
        try:
            while not self._stopping.wait(_POLL_S):
                self._count()
            self._count()
        except Exception as error:  # raised at the end of the block
            self._error = error

    def _count(self) -> None:
        for server in self._servers:
            self.most[server.name] = max(self.most[server.name], int(query_value(server.admin_url, _OPEN)))


# ------------------------------------------------------------------ clients that hang up


def check_returned_connections(stack: Stack, settings: Settings) -> Finding:
    """Send requests and hang up before the answer: their connections have to go back to the pools.

    More requests than all pools have connections, so that one lost at each would leave none.
    """
    database = settings.database
    reader = user_of(stack, settings.verify)
    send_read(settings.verify, reader)
    each = database.pool_size + database.max_overflow
    left = 2 * len(app_servers(stack)) * database.engines * each
    left = min(max(left, _LEAST_LEFT), _MOST_LEFT)
    _hang_up(reader, settings.verify, left)
    servers = [primary(stack), *replicas(stack)]
    numbers: dict[str, float | int | str] = {"left": left}
    if busy := _still_busy(servers):
        numbers["busy"] = sum(busy.values())
        where = ", ".join(f"{count} on {name}" for name, count in busy.items())
        claim = f"{_RETURN_S:g} s after {left} clients had left, connections were in use: {where}"
        remedy = "close the session where the work ends, with `with`, whatever becomes of the client"
        return Finding(RETURNED, claim, Verdict.FAIL, numbers, remedy)
    sent = _read_from_many(reader, settings.verify.read, clients=database.pool_size)
    failed = [one for one in sent if one.failed]
    numbers |= {"reads": len(sent), "failed": len(failed)}
    if failed:
        statuses = status_summary(failed)
        claim = f"after {left} clients left, {len(failed)} of {len(sent)} reads failed ({statuses})"
        remedy = "see who holds the connections: pool_options() names them in its errors and findings"
        return Finding(RETURNED, claim, Verdict.FAIL, numbers, remedy)
    claim = f"{left} clients left early; no connection stayed in use, {len(sent)} reads after them worked"
    return Finding(RETURNED, claim, Verdict.PASS, numbers)


def _hang_up(reader: UserAgent, settings: VerifySettings, count: int) -> None:
    """Send so many reads, and writes in between where they are declared; hang up at random moments."""
    lines = [settings.read, settings.write] if settings.write else [settings.read]
    chance = random.Random(7)  # noqa: S311 - moments, no secrets
    stays = [chance.uniform(0, _LONGEST_STAY_S) for _ in range(count)]

    def run(number: int) -> None:
        for index in range(number, count, _LEAVERS):
            line = lines[index % len(lines)]
            body = settings.write_body if line == settings.write else ""
            reader.hang_up(line, body=body, values={"value": f"left {index}"}, after_s=stays[index])

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(_LEAVERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_TIMEOUT_S)


def _still_busy(servers: Sequence[Server]) -> dict[str, int]:
    """The service's connections that are still in use after five seconds without requests, by server."""
    deadline = time.monotonic() + _RETURN_S
    while busy := {server.name: count for server in servers if (count := _busy_connections(server))}:
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return busy


def _busy_connections(server: Server) -> int:
    return int(query_value(server.admin_url, _BUSY))
