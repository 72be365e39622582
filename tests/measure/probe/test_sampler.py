"""The sampler in a real process: the state and line of requests on the loop, suspended, and in threads."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.server
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import asyncpg
import httpcore  # noqa: F401 - httpx imports it with its first client, and the probe looks again later
import httpx
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tenfold.measure.probe import probe_protocol, thread_states
from tenfold.measure.probe.libraries import watch_libraries
from tenfold.measure.probe.probe import Probe
from tenfold.measure.probe.probe_protocol import SampleRecord
from tenfold.measure.probe.sampler import StackSampler
from tenfold.measure.probe.wsgi import WsgiProbe
from tests.support.waiting import eventually

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")


def line(mark: str) -> str:
    """Return the line of this file with a mark."""
    lines = enumerate(Path(__file__).read_text().splitlines(), 1)
    number = next(number for number, one in lines if one.endswith(f"# mark: {mark}"))
    return f"{Path(__file__).name}:{number}"


class Running:
    """An app with the probe on an event loop in a thread, and the sampler of its process."""

    def __init__(self, app: Any) -> None:
        self.probe = Probe(app, Path("/nowhere/probe.sock"), root=HERE)
        self.probe._pid = os.getpid()  # no sending thread: the test takes the samples
        self.recorder = self.probe.recorder
        self.recorder.is_on = True
        self.sampler = StackSampler(self.recorder, self.probe._loop_monitor)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def send(self, path: str = "/", times: int = 1) -> None:
        """Send requests, and do not wait for them."""
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": [],
                 "query_string": b"", "http_version": "1.1", "scheme": "http"}  # fmt: skip
        for _ in range(times):
            asyncio.run_coroutine_threadsafe(self._call(dict(scope)), self.loop)

    async def _call(self, scope: dict[str, Any]) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            await asyncio.sleep(0)

        with contextlib.suppress(Exception):
            await self.probe(scope, receive, send)

    def find(self, **wanted: object) -> SampleRecord:
        """Sample until a record has these fields."""
        found: list[SampleRecord] = []

        deadline = time.monotonic() + 8
        while not found:
            assert time.monotonic() < deadline, f"not seen: {wanted}, but {list(self.sampler.records)}"
            self.sampler.sample()
            found.extend(
                one
                for one in self.sampler.records.values()
                if all(getattr(one, name) == value for name, value in wanted.items())
            )
            time.sleep(0.005)
        assert not self.sampler.failures
        return found[0]

    def states(self) -> set[tuple[str, str]]:
        return {(one.state, one.place) for one in self.sampler.records.values()}

    def route(self, record: SampleRecord) -> str:
        texts = {one.number: one.path for one in self.recorder._route_texts}
        return texts.get(record.route, "")

    def close(self) -> None:
        self.recorder.stop()
        asyncio.run_coroutine_threadsafe(self._cancel(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others or {asyncio.create_task(asyncio.sleep(0))}, timeout=3)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    monkeypatch.setattr("tenfold.measure.probe.sampler.MOST_CPU", 1.0)  # requests are short here
    started: list[Running] = []

    def start(*endpoints: Callable[..., Any], **options: Any) -> Running:
        app = Starlette(
            routes=[Route("/", one) if n == 0 else Route(f"/{n}", one) for n, one in enumerate(endpoints)],
            **options,
        )
        started.append(Running(app))
        started[-1].send()
        return started[-1]

    yield start
    for one in started:
        one.close()


Endpoint = Callable[[Request], Awaitable[Response]]
OK = PlainTextResponse("ok")


async def sleeps_on_loop(request: Request) -> Response:
    time.sleep(0.5)  # mark: sleeps on loop
    return OK


async def computes(request: Request) -> Response:
    until = time.perf_counter() + 0.5
    while time.perf_counter() < until:
        sum(range(1000))  # mark: computes
    return OK


async def sleeps(request: Request) -> Response:
    await asyncio.sleep(0.5)  # mark: sleeps
    return OK


async def sleeps_by_anyio(request: Request) -> Response:
    await anyio.sleep(0.5)  # mark: sleeps by anyio
    return OK


LOCKS: dict[int, asyncio.Lock] = {}


async def locks(request: Request) -> Response:
    lock = LOCKS.setdefault(id(asyncio.get_running_loop()), asyncio.Lock())
    async with lock:  # mark: locks
        await asyncio.sleep(0.3)
    return OK


def in_thread(request: Request) -> Response:
    time.sleep(0.4)  # mark: in thread
    return OK


async def to_thread(request: Request) -> Response:
    await asyncio.to_thread(time.sleep, 0.4)
    return OK


def computes_in_thread(request: Request) -> Response:
    until = time.perf_counter() + 0.5
    while time.perf_counter() < until:
        hashlib.sha256(b"x" * 100).hexdigest()  # mark: computes in thread
    return OK


async def one_thread(request: Request) -> Response:
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1
    await run_in_threadpool(time.sleep, 0.2)
    return OK


async def resumes(request: Request) -> Response:
    """Be ready again, behind something that blocks the loop."""
    asyncio.get_running_loop().call_soon(time.sleep, 0.4)
    await asyncio.sleep(0)
    return OK


SEEN: dict[str, tuple[Endpoint | Callable[..., Any], dict[str, object], int]] = {
    "a sleep on the loop": (sleeps_on_loop, {"state": "sleep", "place": "loop", "line": "sleeps on loop"}, 1),
    "work on the loop": (computes, {"state": "run", "place": "loop", "line": "computes"}, 1),
    "a suspended sleep": (sleeps, {"state": "sleep", "place": "task", "line": "sleeps"}, 1),
    "a suspended sleep of anyio": (sleeps_by_anyio, {"state": "sleep", "place": "task"}, 1),
    "a wait for a lock": (locks, {"state": "lock", "place": "task", "line": "locks"}, 3),
    "a sleep in a thread": (in_thread, {"state": "sleep", "place": "thread", "line": "in thread"}, 1),
    "work in a thread": (
        computes_in_thread,
        {"state": "run", "place": "thread", "line": "computes in thread"},
        1,
    ),
    "a wait for a thread": (one_thread, {"state": "thread", "place": "task"}, 4),
    "a wait for the loop": (resumes, {"state": "loop", "place": "task"}, 1),
}


@pytest.mark.guarantee(
    "what a request stands at is seen with its line",
    pattern="evidence",
    under="requests on the loop, suspended, and in threads",
)
@pytest.mark.parametrize("case", SEEN)
def test_state_and_line_of_a_request_are_seen(case: str, run: Callable[..., Running]) -> None:
    endpoint, wanted, times = SEEN[case]
    running = run(endpoint)
    eventually(lambda: running.recorder._route_texts, within_s=5)  # its route is known from now on
    running.send(times=times)
    wanted = {key: line(str(value)) if key == "line" else value for key, value in wanted.items()}
    assert running.route(running.find(**wanted)) == "/"


@pytest.mark.control("what a request stands at is seen with its line", "an app without requests")
def test_idle_app_has_no_samples(run: Callable[..., Running]) -> None:
    running = run(sleeps)
    running.find(state="sleep")
    eventually(lambda: not running.recorder.running(), within_s=5)
    running.sampler._clear()
    for _ in range(5):
        running.sampler.sample()
        time.sleep(0.02)
    assert [one for one in running.sampler.records.values() if one.route] == []


def test_work_has_cpu_time_and_a_sleep_has_none(run: Callable[..., Running]) -> None:
    running = run(computes, sleeps_on_loop)
    eventually(
        lambda: running.sampler.sample() or running.find(state="run", place="loop").cpu_s > 0.05, within_s=5
    )
    running.sampler._clear()
    running.send("/1")
    assert running.find(state="sleep", place="loop").cpu_s < 0.05


def test_clock_of_the_loop_divides_its_time(run: Callable[..., Running]) -> None:
    running = run(sleeps_on_loop)
    running.send(times=2)
    running.find(state="sleep", place="loop")
    eventually(lambda: running.sampler.sample() or running.sampler.loop.blocked_s > 0.3, within_s=5)
    loop = running.sampler.loop
    assert loop.blocked_s + loop.cpu_s + loop.runqueue_s + loop.gil_s <= loop.wall_s * 1.01
    assert loop.blocked_s > 5 * loop.cpu_s


def test_background_thread_is_seen_without_a_route(run: Callable[..., Running]) -> None:
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))  # mark: burns

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        running = run(sleeps)
        found = running.find(state="run", place="thread", line=line("burns"))
        assert found.route == probe_protocol.OTHER
    finally:
        stop.set()
        thread.join()


def test_request_below_a_base_http_middleware_is_seen(run: Callable[..., Running]) -> None:
    class Plain(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            return await call_next(request)  # type: ignore[no-any-return]

    running = run(sleeps, middleware=[Middleware(Plain)])
    eventually(lambda: running.recorder._route_texts, within_s=5)
    running.send()
    found = running.find(state="sleep", place="task", line=line("sleeps"))
    assert running.route(found) == "/"


class Remote(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(0.3)
        self.send_response(503 if "busy" in self.path else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def remote() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Remote)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


async def _aiohttp(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        await response.read()


async def _httpx(url: str) -> None:
    async with httpx.AsyncClient() as client:
        await client.get(url)


async def _blocking(url: str) -> None:
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(url).read()


async def _in_thread(url: str) -> None:
    await asyncio.to_thread(httpx.get, url)


CLIENTS = {"aiohttp": (_aiohttp, "task"), "httpx": (_httpx, "task"), "urllib": (_blocking, "loop"),
           "httpx in a thread": (_in_thread, "thread")}  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("path", ["", "busy"])
def test_call_to_another_service_is_seen_and_counted(
    client: str, path: str, remote: str, run: Callable[..., Running]
) -> None:
    call, place = CLIENTS[client]

    async def asks(request: Request) -> Response:
        await call(remote + path)  # mark: asks
        return OK

    running = run(sleeps, asks)
    watch_libraries(running.recorder)
    running.send("/1")
    found = running.find(state="http", place=place)
    assert found.detail == "127.0.0.1"
    eventually(lambda: running.recorder._statement_texts, within_s=5)
    told = running.recorder._statement_texts[0]
    assert told.fingerprint == ("HTTP 127.0.0.1: 503" if path else "HTTP 127.0.0.1")
    assert told.database == "http"


def test_statement_and_pool_are_told_apart(postgres_url: str, run: Callable[..., Running]) -> None:
    engine = create_engine(
        postgres_url.replace("postgresql:", "postgresql+psycopg:"), pool_size=1, max_overflow=0
    )

    def asks(request: Request) -> Response:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(0.3)"))  # mark: asks the database
            time.sleep(0.2)
        return OK

    running = run(asks)
    running.send(times=2)
    assert running.find(state="db", place="thread", line=line("asks the database")).holds
    assert running.find(state="sleep", place="thread", holds=True)
    waiting = running.find(state="pool")
    assert not waiting.holds
    eventually(lambda: not running.recorder.running(), within_s=5)
    assert not any(one.request._holds for one in running.recorder.running())
    engine.dispose()


def test_statement_of_an_async_engine_is_suspended(postgres_url: str, run: Callable[..., Running]) -> None:
    engine = create_async_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))

    async def asks(request: Request) -> Response:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_sleep(0.4)"))  # mark: asks asynchronously
        return OK

    running = run(asks)
    assert running.find(state="db", place="task", line=line("asks asynchronously")).holds


def test_pool_of_asyncpg_is_seen_on_the_stack(postgres_url: str, run: Callable[..., Running]) -> None:
    pools: list[Any] = []

    async def asks(request: Request) -> Response:
        if not pools:
            pools.append(await asyncpg.create_pool(postgres_url, min_size=1, max_size=1))
        async with pools[0].acquire() as connection:  # mark: waits for asyncpg
            await connection.execute("SELECT pg_sleep(0.3)")
        return OK

    running = run(asks)
    eventually(lambda: running.recorder._route_texts, within_s=5)
    running.send(times=3)
    assert running.find(state="pool", place="task").line == line("waits for asyncpg")


def test_wsgi_request_is_seen_by_its_thread() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        time.sleep(0.5)  # mark: wsgi
        return [b"ok"]

    running = Running(None)
    wrapped = WsgiProbe(app, running.probe)
    thread = threading.Thread(
        target=lambda: list(wrapped({"REQUEST_METHOD": "GET", "PATH_INFO": "/w"}, print))
    )
    thread.start()
    found = running.find(state="sleep", place="thread", line=line("wsgi"))
    assert running.route(found) == "/w"
    thread.join()
    running.close()


def test_stacks_are_folded_for_flame_graphs(run: Callable[..., Running]) -> None:
    running = run(computes)
    running.find(state="run", place="loop", line=line("computes"))
    folded = next(stack for stack in running.sampler.stacks if "test_sampler:computes" in stack)
    number, state, *names = folded.split(";")
    assert number.isdigit() and state == "run"
    assert names[-1] == "test_sampler:computes"
    assert not any("measure/probe" in name for name in names)


def test_failed_look_is_counted_and_the_app_does_not_notice(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = run(sleeps)
    monkeypatch.setattr(StackSampler, "spent", lambda self, tid: 1 / 0)
    eventually(lambda: running.sampler.sample() or running.sampler.failures, within_s=5)
    eventually(lambda: running.recorder._route_texts, within_s=5)


def test_kernel_tells_a_call_that_blocks() -> None:
    started = threading.Event()
    tids: list[int] = []

    def sleep() -> None:
        tids.append(threading.get_native_id())
        started.set()
        time.sleep(0.3)

    thread = threading.Thread(target=sleep)
    thread.start()
    started.wait(5)
    eventually(lambda: thread_states.read_call(tids[0])[0] == "sleep", within_s=2)
    thread.join()
    assert thread_states.read_clock(tids[0]) is None
    assert thread_states.peer_of(-1) == ""


def test_thread_is_that_of_the_request_which_runs_in_it(
    postgres_url: str, run: Callable[..., Running]
) -> None:
    """A session of a dependency: the connection is held on while the request waits for something else."""
    url = postgres_url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url, pool_size=5, max_overflow=0)

    async def holds(request: Request) -> Response:
        connection = await run_in_threadpool(engine.connect)
        await asyncio.sleep(0.5)  # mark: holds on
        await run_in_threadpool(connection.close)
        return OK

    running = run(holds, computes_in_thread)
    eventually(lambda: running.recorder._route_texts, within_s=5)
    running.sampler._clear()
    running.send()
    running.send("/1", times=2)
    assert running.find(state="sleep", place="task", line=line("holds on")).holds
    running.find(state="run", place="thread", line=line("computes in thread"))
    for record in running.sampler.records.values():
        assert not (record.line == line("computes in thread") and record.holds)
    engine.dispose()
