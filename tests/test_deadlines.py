"""Deadlines: they only ever get shorter, reach tasks and threads, and end what nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tenfold.balancing.httpx import bound, bound_async
from tenfold.deadlines import DeadlineMiddleware, RetryBudget, budget_s, check, deadline, remaining_s
from tenfold.errors import DeadlineExceededError


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]


def test_a_deadline_is_only_ever_shortened() -> None:
    assert remaining_s() is None
    with deadline(10):
        with deadline(20):
            assert 9 < (remaining_s() or 0) <= 10
        with deadline(5):
            assert 4 < (remaining_s() or 0) <= 5
        assert 9 < (remaining_s() or 0) <= 10
        check()
    assert remaining_s() is None
    with deadline(-1):
        assert remaining_s() == 0
        with pytest.raises(DeadlineExceededError, match="nobody waits"):
            check()
    check()


def test_tasks_and_threads_inherit_it_and_bare_threads_do_not() -> None:
    found: dict[str, float | None] = {}

    def note(name: str) -> None:
        found[name] = remaining_s()

    async def task() -> None:
        note("task")

    async def test() -> None:
        with deadline(10):
            started = asyncio.create_task(task())
            await run_in_threadpool(note, "starlette")
            await anyio.to_thread.run_sync(note, "anyio")
            await asyncio.to_thread(note, "asyncio")
            thread = threading.Thread(target=note, args=("bare",))
            thread.start()
            thread.join()
        await started

    run(test)
    assert found.pop("bare") is None  # which the docstring says
    assert set(found) == {"task", "starlette", "anyio", "asyncio"}
    assert all(left is not None and 0 < left <= 10 for left in found.values())


# ------------------------------------------------------------------ the budget


@pytest.mark.parametrize(
    ("started", "allowed", "expected"),  # it is 1000.0; 10 s are given, clocks may differ by 0.5
    [
        (None, None, 10.0),
        ("t=1000.000", None, 10.0),
        ("t=997.5", None, 8.0),  # 2.5 s ago, of which 0.5 may be the clocks' difference
        ("997.500", None, 8.0),
        ("t=999.7", None, 10.0),
        ("t=985.0", None, 0.0),  # 15 s ago: nobody waits
        ("t=1003", None, 10.0),  # a clock that is ahead
        ("t=100.0", None, 10.0),  # a clock that was set: not believed
        ("t=abc", None, 10.0),
        ("t=-5", None, 10.0),
        ("t=1e3", None, 10.0),
        ("t=997.5, t=1", None, 10.0),
        ("", None, 10.0),
        (None, "3", 3.0),
        (None, "30", 10.0),
        (None, "0", 0.0),
        (None, "-1", 10.0),
        (None, "nan", 10.0),
        (None, "inf", 10.0),
        ("t=997.5", "3", 1.0),
    ],
)
def test_budgets(started: str | None, allowed: str | None, expected: float) -> None:
    left = budget_s(
        started=started, allowed=allowed, timeout_s=10, now_s=1000.0, skew_s=0.5, most_waited_s=20
    )
    assert left == pytest.approx(expected)


@given(
    waited=st.floats(0, 5), skew=st.floats(-0.5, 0.5), timeout=st.floats(0.1, 100), now=st.floats(1e9, 2e9)
)
def test_clocks_within_the_skew_never_take_time_away(
    waited: float, skew: float, timeout: float, now: float
) -> None:
    started = f"t={now - waited + skew:.3f}"
    left = budget_s(
        started=started, allowed=None, timeout_s=timeout, now_s=now, skew_s=0.5, most_waited_s=2 * timeout
    )
    assert max(timeout - waited, 0) - 0.002 <= left <= timeout


# ------------------------------------------------------------------ the middleware


class Handlers:
    """Endpoints that note how they ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.began = asyncio.Event()
        self.go_on = threading.Event()

    async def patient(self, request: Request) -> PlainTextResponse:
        self.began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        return PlainTextResponse("done")

    def in_a_thread(self, request: Request) -> PlainTextResponse:
        self.go_on.wait(20)
        self.ended.append("ran to its end")
        return PlainTextResponse("done")

    def looking(self, request: Request) -> PlainTextResponse:
        while True:
            check()
            time.sleep(0.005)

    async def streaming(self, request: Request) -> StreamingResponse:
        async def parts() -> Any:
            yield b"one "
            await asyncio.sleep(0.1)
            yield b"two"

        return StreamingResponse(parts())

    async def echo(self, request: Request) -> PlainTextResponse:
        await asyncio.sleep(0.1)  # the client is watched by now
        return PlainTextResponse((await request.body()).decode())

    async def broken(self, request: Request) -> PlainTextResponse:
        raise ValueError("the app's own")

    def app(self, **options: Any) -> Starlette:
        names = ["patient", "in_a_thread", "looking", "streaming", "echo", "broken"]
        routes = [Route(f"/{name}", getattr(self, name), methods=["GET", "POST"]) for name in names]
        return Starlette(routes=routes, middleware=[Middleware(DeadlineMiddleware, **options)])


async def get(app: Any, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(options.pop("method", "GET"), path, **options)


def test_who_comes_too_late_is_answered_before_the_app_is_asked() -> None:
    async def test() -> None:
        handlers = Handlers()
        app = handlers.app(timeout_s=5)
        started = {"x-request-start": f"t={time.time() - 8:.3f}"}
        assert (await get(app, "/patient", headers=started)).status_code == 504
        assert not handlers.began.is_set()

    run(test)


def test_an_async_handler_is_cancelled_when_time_is_over() -> None:
    async def test() -> None:
        handlers = Handlers()
        answer = await get(handlers.app(timeout_s=0.1), "/patient")
        assert (answer.status_code, handlers.ended) == (504, ["cancelled"])

    run(test)


def test_the_control_without_the_middleware_it_goes_on() -> None:
    async def test() -> None:
        handlers = Handlers()
        app = Starlette(routes=[Route("/patient", handlers.patient)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(get(app, "/patient"), 0.3)
        assert handlers.ended == ["cancelled"]  # only because this test ended it

    run(test)


def test_a_thread_is_waited_for_and_its_answer_is_504() -> None:
    async def test() -> None:
        handlers = Handlers()
        asked = asyncio.create_task(get(handlers.app(timeout_s=0.05), "/in_a_thread"))
        await asyncio.sleep(0.15)
        assert not asked.done()
        handlers.go_on.set()
        assert (await asked).status_code == 504
        assert handlers.ended == ["ran to its end"]

    run(test)


def test_a_thread_that_looks_at_the_deadline_ends() -> None:
    async def test() -> None:
        answer = await get(Handlers().app(timeout_s=0.05), "/looking")
        assert answer.status_code == 504

    run(test)


def test_an_answer_that_has_begun_is_left_to_end() -> None:
    async def test() -> None:
        answer = await get(Handlers().app(timeout_s=0.05), "/streaming")
        assert (answer.status_code, answer.text) == (200, "one two")

    run(test)


def test_what_is_not_late_is_as_without() -> None:
    async def test() -> None:
        app = Handlers().app(timeout_s=20)
        answer = await get(app, "/echo", method="POST", content=b"hello" * 1000)
        assert answer.text == "hello" * 1000
        assert (await get(app, "/echo")).text == ""
        assert (await get(app, "/broken")).status_code == 500
        assert (await get(Handlers().app(timeout_s=0.01, exempt=("/echo",)), "/echo")).status_code == 200

    run(test)


@pytest.mark.parametrize("size", [1, 1000, 50_000])
def test_a_body_that_is_read_ahead_arrives_whole_and_in_order(size: int) -> None:
    """Also when it comes in parts, some ahead of the app and some only once it reads."""
    parts = [bytes([65 + number]) * size for number in range(10)]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages += [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
    got: list[Any] = []
    coming = iter(messages)

    async def receive() -> Any:
        await asyncio.sleep(0.001)
        if len(got) < 11 and (message := next(coming))["type"] == "http.request":
            return message
        await asyncio.sleep(60)  # the client stays

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.08)
        while not got or got[-1]["more_body"]:
            got.append(await receive())
            await asyncio.sleep(0.002)

    async def send(message: Any) -> None:
        raise AssertionError("nothing is to be sent")

    async def test() -> None:
        scope = {"type": "http", "path": "/", "headers": []}
        await DeadlineMiddleware(app, timeout_s=20)(scope, receive, send)

    run(test)
    assert got == messages[:-1]


@pytest.mark.timeout(20)
def test_a_body_that_arrives_as_the_app_asks_for_it_does_not_stop_the_loop() -> None:
    """The app is woken after what reads ahead is done, and before that is known."""
    last = {"type": "http.request", "body": b"whole", "more_body": False}

    async def test() -> None:
        arrived, got = asyncio.Event(), []

        async def receive() -> Any:
            await arrived.wait()
            return last

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0.1)  # by now it is read ahead
            asyncio.get_running_loop().call_later(0.05, arrived.set)
            await arrived.wait()
            got.append(await receive())
            await send({"type": "http.response.start", "status": 204, "headers": []})

        async def send(message: Any) -> None:
            """Nobody listens."""

        scope = {"type": "http", "path": "/", "headers": []}
        await DeadlineMiddleware(app)(scope, receive, send)
        assert got == [last]

    run(test)


@pytest.mark.parametrize(("believe", "expected"), [(True, 504), (False, 200)])
def test_callers_are_believed_only_when_told_so(believe: bool, expected: int) -> None:
    async def test() -> None:
        app = Handlers().app(timeout_s=20, believe_callers=believe)
        answer = await get(app, "/echo", headers={"x-request-timeout": "0.01"})
        assert answer.status_code == expected

    run(test)


def test_a_server_that_cancels_is_obeyed() -> None:
    async def test() -> None:
        handlers = Handlers()
        asked = asyncio.create_task(get(handlers.app(timeout_s=20), "/patient"))
        await handlers.began.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert handlers.ended == ["cancelled"]

    run(test)


def test_without_anyio_asyncio_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    async def test() -> None:
        assert (await get(DeadlineMiddleware(app, timeout_s=0.05), "/")).status_code == 504

    async def asks(path: str) -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        monkeypatch.delitem(sys.modules, "anyio")
        middleware = DeadlineMiddleware(app, timeout_s=0.05)
        await middleware({"type": "http", "path": path, "headers": []}, asyncio.Event().wait, send)  # type: ignore[arg-type]
        assert sent[0]["status"] == 504

    run(lambda: asks("/"))
    assert ended == ["cancelled"]


# ------------------------------------------------------------------ a client that leaves a real server

SERVED = """
import asyncio, sys
from pathlib import Path
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tenfold.deadlines import DeadlineMiddleware

notes = Path(__file__).with_name("notes")

def note(what):
    with notes.open("a") as file:
        file.write(what + "\\n")

async def patient(request):
    note("began")
    try:
        await asyncio.sleep(2)
        note("done")
    except asyncio.CancelledError:
        note("cancelled")
        raise
    return PlainTextResponse("done")

async def ready(request):
    return PlainTextResponse("ok")

async def echo(request):
    await asyncio.sleep(float(request.query_params["after"]))
    return PlainTextResponse((await request.body()).decode())

app = Starlette(
    routes=[
        Route("/patient", patient, methods=["GET", "POST"]),
        Route("/echo", echo, methods=["POST"]),
        Route("/ready", ready),
    ]
)
guarded = DeadlineMiddleware(app, timeout_s=30)
"""


@contextlib.contextmanager
def granian(folder: Path, name: str) -> Iterator[int]:
    (folder / "served.py").write_text(SERVED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "granian", f"served:{name}", "--interface", "asgi", "--loop", "asyncio",
         "--host", "127.0.0.1", "--port", str(port)],
        cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    try:
        until(lambda: answers(port))
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.02)


def leave(port: int, notes: Path, body: bytes) -> str:
    """How a handler ended whose client left."""
    head = f"POST /patient HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode() + body)
        until(lambda: notes.exists() and notes.read_text())
    until(lambda: notes.read_text() != "began\n")
    return notes.read_text().split()[1]


@pytest.mark.parametrize("body", [b"", b"x" * 100], ids=["no body", "a body nobody reads"])
def test_a_handler_whose_client_left_is_cancelled(tmp_path: Path, body: bytes) -> None:
    with granian(tmp_path, "guarded") as port:
        assert leave(port, tmp_path / "notes", body) == "cancelled"


def test_a_body_arrives_whoever_of_client_and_app_is_the_slow_one(tmp_path: Path) -> None:
    """granian's ``receive`` answers with a future of its own kind, which calls back one listener."""
    moments = [(sent, read) for sent in (0.0, 0.02, 0.15) for read in (0.0, 0.03, 0.1, 0.2)]
    with granian(tmp_path, "guarded") as port:
        for sent_after_s, read_after_s in moments:
            head = f"POST /echo?after={read_after_s} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(head.encode())
                time.sleep(sent_after_s)  # a client may be slow: that is what is varied
                client.sendall(b"whole")
                answer = b""
                while not answer.endswith(b"whole"):
                    received = client.recv(4096)
                    assert received, (sent_after_s, read_after_s, answer)
                    answer += received


def test_the_control_without_the_middleware_it_works_for_nobody(tmp_path: Path) -> None:
    with granian(tmp_path, "app") as port:
        assert leave(port, tmp_path / "notes", b"") == "done"


# ------------------------------------------------------------------ outgoing calls


def test_outgoing_calls_end_with_the_request_and_say_so() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    with httpx.Client(
        transport=httpx.MockTransport(answer), timeout=60, event_hooks={"request": [bound]}
    ) as client:
        client.get("http://other/")
        with deadline(2):
            client.get("http://other/")
            client.get("http://other/", timeout=0.5)
            client.get("http://other/", timeout=None)
        with deadline(0), pytest.raises(DeadlineExceededError):
            client.get("http://other/")
    reads = [request.extensions["timeout"]["read"] for request in seen]
    assert reads[0] == 60
    assert reads[2] == 0.5
    assert all(1 < read <= 2 for read in (reads[1], reads[3]))
    assert "x-request-timeout" not in seen[0].headers
    assert 1 < float(seen[1].headers["x-request-timeout"]) <= 2


def test_a_slow_server_is_not_waited_for_beyond_the_deadline() -> None:
    async def test() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with httpx.AsyncClient(timeout=25, event_hooks={"request": [bound_async]}) as client:
            started = time.monotonic()
            with deadline(0.1), pytest.raises(httpx.ReadTimeout):
                await client.get(url)
            assert time.monotonic() - started < 15
        server.close()

    run(test)


# ------------------------------------------------------------------ retries


@given(
    events=st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=200),
    ratio=st.floats(0, 1),
    min_per_s=st.floats(0, 5),
    saved=st.floats(0, 20),
)
def test_retries_never_exceed_their_share(
    events: list[tuple[float, bool]], ratio: float, min_per_s: float, saved: float
) -> None:
    now = 0.0
    budget = RetryBudget(ratio, min_per_s=min_per_s, saved=saved, clock=lambda: now)
    calls = retries = 0
    for pause, first in events:
        now += pause
        if first:
            budget.request()
            calls += 1
        else:
            retries += budget.retry()
        assert retries <= ratio * calls + min_per_s * now + saved + 1e-6


def test_where_all_fails_a_tenth_is_tried_again() -> None:
    now = 0.0
    budget = RetryBudget(clock=lambda: now)
    retries = 0
    for _ in range(10_000):
        now += 0.001
        budget.request()
        retries += sum(budget.retry() for _ in range(3))
    assert 1000 <= retries <= 1000 + 10 + 10


def test_nothing_is_tried_again_when_time_is_over() -> None:
    budget = RetryBudget(min_per_s=10)
    budget.request()
    with deadline(0):
        assert not budget.retry()
    assert budget.retry()
