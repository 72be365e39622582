"""The cost of sessions: Redis commands and microseconds per request, beside starsessions and Starlette's own.

    python -m benchmarks.sessions [--rounds 40] [--requests 50] [--json]

One process drives one bare ASGI app inside each middleware, one request at a time, against one real Redis.
They take turns of a few requests, so that other load on the machine affects all alike. Times are medians of
the rounds and include the app, which does nothing: wall clock, and CPU of this process. Ratios are medians of
each round's ratio to a plain ``client.get`` of the same size by redis-py. Beside it: the fastest GET that
redis-py allows, on one held connection without a timeout; and tenfold over redis-py's client in place of
``tenfold.redis_pool``. Starlette keeps the session in the cookie: no Redis, no revocation. Goals: a request
that reads takes at most 1.2 of ``client.get``; commands as in docs/sessions.md.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from hiredis import pack_command
from redis.asyncio import ConnectionPool, Redis
from starlette.middleware.sessions import SessionMiddleware as StarletteMiddleware
from starlette.requests import Request
from starsessions import SessionMiddleware as StarsessionsMiddleware
from starsessions import load_session, regenerate_session_id
from starsessions.stores.redis import RedisStore as StarsessionsStore

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from tenfold.sessions import RedisStore, SessionMiddleware, current
from tenfold.settings import Settings, StackSettings
from tenfold.stack import Stack

SCENARIOS = ("untouched", "read only", "one write", "login")
GET, HELD_GET = ("client.get", ""), ("held GET", "")
READ = ("tenfold", "read only")
READ_GOAL = 1.2  # of client.get, time and CPU
COMMANDS = dict(zip(SCENARIOS, (0, 1, 2, 2), strict=True))  # goals of tenfold
PROFILE = {"theme": "dark", "cart": [{"product": number, "count": 1} for number in range(5)], "seen": 0}
Scope = MutableMapping[str, Any]
Times = tuple[float, float]
Key = tuple[str, str]  # contender, scenario
App = Callable[..., Awaitable[None]]
Endpoint = Callable[[Request], Awaitable[None]]


async def untouched(request: Request) -> None: ...


async def tenfold_begin(request: Request) -> None:
    (await current(request)).update(PROFILE)


async def tenfold_read(request: Request) -> None:
    assert (await current(request))["theme"] == "dark"


async def tenfold_write(request: Request) -> None:
    session = await current(request)
    session["seen"] = session["seen"] + 1


async def tenfold_login(request: Request) -> None:
    (await current(request)).login("user 42")


async def starsessions_begin(request: Request) -> None:
    await load_session(request)
    request.session.update(PROFILE)


async def starsessions_read(request: Request) -> None:
    await load_session(request)
    assert request.session["theme"] == "dark"


async def starsessions_write(request: Request) -> None:
    await load_session(request)
    request.session["seen"] += 1


async def starsessions_login(request: Request) -> None:
    await load_session(request)
    request.session["user"] = "user 42"
    regenerate_session_id(request)


async def starlette_begin(request: Request) -> None:
    request.session.update(PROFILE)


async def starlette_read(request: Request) -> None:
    assert request.session["theme"] == "dark"


async def starlette_write(request: Request) -> None:
    request.session["seen"] += 1


async def starlette_login(request: Request) -> None:
    request.session["user"] = "user 42"


async def service(scope: Scope, receive: Any, send: Any) -> None:
    await scope["endpoint"](Request(scope, receive))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Contender:
    """A middleware around the service, and a client with a session in it."""

    def __init__(self, name: str, app: App, begin: Endpoint, *endpoints: Endpoint) -> None:
        self.name, self.app = name, app
        self.endpoints = dict(zip(SCENARIOS, (untouched, *endpoints), strict=True))
        self.begin, self.cookie = begin, b""

    async def request(self, endpoint: Endpoint, *, new: bool = False) -> None:
        headers = [(b"host", b"localhost")] if new else [(b"host", b"localhost"), (b"cookie", self.cookie)]
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET", "scheme": "https", "path": "/",
            "raw_path": b"/", "query_string": b"", "root_path": "", "headers": headers, "endpoint": endpoint,
        }  # fmt: skip
        await self.app(scope, _receive, self._send)

    async def run(self, scenario: str) -> None:
        """Send one request with the latest cookie; a login has none, and its cookie is not stored."""
        present = self.cookie
        await self.request(self.endpoints[scenario], new=scenario == "login")
        if scenario == "login":
            self.cookie = present

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message
            for name, value in message["headers"]:
                if name.lower() == b"set-cookie":
                    self.cookie = value.partition(b";")[0]


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def contenders(url: str, client: Redis) -> list[Contender]:
    starlette = (starlette_begin, starlette_read, starlette_write, starlette_login)
    starsessions = (starsessions_begin, starsessions_read, starsessions_write, starsessions_login)
    tenfold = (tenfold_begin, tenfold_read, tenfold_write, tenfold_login)
    store = StarsessionsStore(connection=client)
    return [
        Contender("tenfold", SessionMiddleware(service, store=RedisStore(url)), *tenfold),
        Contender("over client", SessionMiddleware(service, store=RedisStore(client, prefix="c:")), *tenfold),
        Contender("starsessions", StarsessionsMiddleware(service, store, lifetime=3600), *starsessions),
        Contender("Starlette", StarletteMiddleware(service, secrets.token_hex(32)), *starlette),
    ]


class Monitor:
    """Counts every command that clients send to Redis, but not those within scripts."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.connection = socket.create_connection((parts.hostname, parts.port), timeout=10)
        self.lines = self.connection.makefile("rb")
        self.connection.sendall(f"AUTH {parts.password}\r\nMONITOR\r\n".encode())
        assert [self.lines.readline() for _ in range(2)] == [b"+OK\r\n"] * 2

    def close(self) -> None:
        self.lines.close()
        self.connection.close()

    async def count_until_now(self, client: Redis) -> Counter[str]:
        """Count the commands since the last call."""
        mark = secrets.token_hex(8)
        await client.echo(mark)
        found: Counter[str] = Counter()
        while mark.encode() not in (line := self.lines.readline()):
            client_address, _, command = line.partition(b"] ")
            if not client_address.endswith(b" lua"):
                found[command.split(b'"')[1].decode()] += 1
        return found


async def count(client: Redis, url: str, parties: list[Contender], requests: int) -> dict[Key, Result]:
    """Count the Redis commands of a request."""
    commands = {}
    with closing(Monitor(url)) as monitor:
        for scenario in SCENARIOS:
            for party in parties:
                await party.run(scenario)
                await monitor.count_until_now(client)
                for _ in range(requests):
                    await party.run(scenario)
                found = await monitor.count_until_now(client)
                commands[party.name, scenario] = Result(
                    f"{party.name}, {scenario}: Redis commands",
                    found.total() / requests,
                    COMMANDS[scenario] if party.name == "tenfold" else None,
                    note=" + ".join(sorted(found)),
                )
    return commands


async def measure(
    calls: dict[Key, Callable[[], Awaitable[object]]], rounds: int, requests: int
) -> dict[Key, list[Times]]:
    """Measure microseconds per call, wall clock and CPU, one pair a round."""
    measured: dict[Key, list[Times]] = {key: [] for key in calls}
    for key in turns(list(calls), rounds):
        started, cpu_started = time.perf_counter_ns(), time.process_time_ns()
        for _ in range(requests):
            await calls[key]()
        elapsed, cpu = time.perf_counter_ns() - started, time.process_time_ns() - cpu_started
        measured[key].append((elapsed / requests / 1000, cpu / requests / 1000))
    return measured


def compare(measured: dict[Key, list[Times]], commands: dict[Key, Result]) -> Iterator[Result]:
    """Yield each contender's ratios to ``client.get``, and its commands."""
    base, base_cpu = zip(*measured.pop(GET), strict=True)
    yield median_result("client.get, µs", base)
    yield median_result("client.get, CPU µs", base_cpu)
    for key, times in measured.items():
        name = ", ".join(filter(None, key))
        goal = READ_GOAL if key == READ else None
        elapsed, cpu = zip(*times, strict=True)
        yield ratio_result(f"{name}: time / client.get", elapsed, base, goal=goal)
        yield ratio_result(f"{name}: CPU / client.get", cpu, base_cpu, goal=goal)
        if key in commands:
            yield commands[key]


async def run(url: str, rounds: int, requests: int) -> list[Result]:
    client = Redis.from_url(url)
    held = await ConnectionPool.from_url(url, protocol=2, socket_timeout=None).get_connection()
    parties = contenders(url, client)
    for party in parties:
        await party.request(party.begin, new=True)
    key = next(iter(await client.keys("tenfold:session:*")))

    packed = pack_command(("GET", key))

    async def held_get() -> None:
        await held.send_packed_command(packed, check_health=False)
        await held.read_response()

    calls: dict[Key, Callable[[], Awaitable[object]]] = {GET: lambda: client.get(key), HELD_GET: held_get}
    for scenario in SCENARIOS:
        for party in parties:
            calls[party.name, scenario] = lambda party=party, scenario=scenario: party.run(scenario)
    commands = await count(client, url, parties, 20)
    await measure(calls, 2, requests)  # warm
    measured = await measure(calls, rounds, requests)
    await held.disconnect()
    await client.aclose()
    return list(compare(measured, commands))


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=50, help="in a row, before the next contender's turn")
    options = parser.parse_args()
    with Stack(Settings(stack=StackSettings(database=False, nginx=False))) as stack:
        redis = next(server for server in stack.servers if server.kind == "redis")
        print(redis.about, file=sys.stderr)
        results = asyncio.run(run(redis.url, options.rounds, options.requests))
    print_results(results, as_json=options.json)


if __name__ == "__main__":
    main()
