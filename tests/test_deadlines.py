"""Deadlines and their middleware: contexts, budgets, cancellation."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
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

from tenfold.deadlines import DeadlineMiddleware, budget_s, check_deadline, deadline, remaining_s
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
        check_deadline()
    assert remaining_s() is None
    with deadline(-1):
        assert remaining_s() == 0
        with pytest.raises(DeadlineExceededError, match="no client waits"):
            check_deadline()
    check_deadline()


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


@pytest.mark.guarantee("clocks that disagree refuse no request wrongly")
@pytest.mark.parametrize(
    ("started", "allowed", "expected"),  # it is 1000.0; 10 s are given, clocks may differ by 0.5
    [
        (None, None, 10.0),
        ("t=1000.000", None, 10.0),
        ("t=997.5", None, 8.0),  # 2.5 s ago, of which 0.5 may be the clocks' difference
        ("997.500", None, 8.0),
        ("t=999.7", None, 10.0),
        ("t=985.0", None, 0.0),  # 15 s ago: no client waits
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
    left = budget_s(started=started, allowed=allowed, timeout_s=10, now_s=1000.0, skew_s=0.5, max_queued_s=20)
    assert left == pytest.approx(expected)


@pytest.mark.guarantee(
    "clocks that disagree refuse no request wrongly",
    pattern="overload",
    under="skew, a clock that was set",
    control="the same table's late ones",
)
@given(
    waited=st.floats(0, 5), skew=st.floats(-0.5, 0.5), timeout=st.floats(0.1, 100), now=st.floats(1e9, 2e9)
)
def test_clocks_within_the_skew_never_take_time_away(
    waited: float, skew: float, timeout: float, now: float
) -> None:
    started = f"t={now - waited + skew:.3f}"
    left = budget_s(
        started=started, allowed=None, timeout_s=timeout, now_s=now, skew_s=0.5, max_queued_s=2 * timeout
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
            check_deadline()
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


def test_late_request_is_refused_before_the_app_runs() -> None:
    async def test() -> None:
        handlers = Handlers()
        app = handlers.app(timeout_s=5)
        started = {"x-request-start": f"t={time.time() - 8:.3f}"}
        assert (await get(app, "/patient", headers=started)).status_code == 504
        assert not handlers.began.is_set()

    run(test)


def test_async_handler_is_cancelled_at_the_deadline() -> None:
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


def test_request_in_time_is_unchanged() -> None:
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
def test_request_timeout_header_counts_only_with_trust_callers(believe: bool, expected: int) -> None:
    async def test() -> None:
        app = Handlers().app(timeout_s=20, trust_callers=believe)
        answer = await get(app, "/echo", headers={"x-request-timeout": "0.01"})
        assert answer.status_code == expected

    run(test)


def test_cancellation_by_the_server_is_passed_on() -> None:
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


def test_each_of_many_requests_ends_at_its_own_deadline() -> None:
    """All share one timer: short, long and late ones, also after a pause without any."""

    async def sleep_for(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(float(scope["path"].strip("/")))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    quick, patient = (
        DeadlineMiddleware(sleep_for, timeout_s=0.15),
        DeadlineMiddleware(sleep_for, timeout_s=10),
    )

    async def test() -> None:
        for _ in range(2):
            began = time.monotonic()
            calls = [get(quick, "/30"), get(quick, "/0.01"), get(patient, "/0.3"), get(quick, "/30")]
            answers = await asyncio.gather(*calls)
            assert [answer.status_code for answer in answers] == [504, 200, 200, 504]
            assert time.monotonic() - began < 5
            await asyncio.sleep(0.06)  # longer than the shared timer waits

    run(test)
    run(test)  # another event loop


def test_a_loop_that_is_gone_is_not_kept() -> None:
    async def serve() -> weakref.ref[asyncio.AbstractEventLoop]:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        assert (await get(DeadlineMiddleware(answer), "/")).status_code == 200
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(serve())
    gc.collect()
    assert loop() is None
