"""Health endpoints: alive, ready, draining."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenfold.balancing.health import Health, HealthMiddleware
from tenfold.errors import SettingsError


async def request(app: Callable, path: str, method: str = "GET") -> tuple[int, dict]:
    sent = []

    async def send(message: dict) -> None:
        sent.append(message)

    await app({"type": "http", "path": path, "method": method}, None, send)
    return sent[0]["status"], json.loads(sent[1].get("body") or b"{}")


async def hello(scope: dict, receive: Callable, send: Callable) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"hello": 1}'})


def ready(health: Health) -> tuple[int, dict]:
    return asyncio.run(request(HealthMiddleware(hello, health=health), "/health/ready"))


async def works() -> None:
    await asyncio.sleep(0)


async def breaks() -> None:
    raise OSError("postgresql://user:secret@db")


async def hangs() -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("probes", "failed"),
    [
        ({}, []),
        ({"database": works, "redis": lambda: None}, []),
        ({"database": breaks, "redis": works}, ["database"]),
        ({"database": hangs, "redis": lambda: False}, ["database", "redis"]),
        ({"database": lambda: works()}, []),
        ({"database": lambda: breaks()}, ["database"]),
    ],
)
def test_ready_when_every_probe_works(probes: dict, failed: list[str]) -> None:
    status, told = ready(Health(probes, timeout_s=0.05))
    assert status == (503 if failed else 200)
    assert told.get("failed", []) == failed


def test_failed_probe_shows_its_name_and_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    _, told = ready(Health({"database": breaks}))
    assert told == {"status": "not ready", "failed": ["database"]}
    assert "database" in caplog.text
    assert "secret" not in caplog.text


def test_alive_runs_no_probe() -> None:
    app = HealthMiddleware(hello, health=Health({"database": breaks}))
    assert asyncio.run(request(app, "/health/live")) == (200, {"status": "alive"})
    assert asyncio.run(request(app, "/health/live", "HEAD")) == (200, {})


def test_other_paths_go_to_the_app() -> None:
    assert asyncio.run(request(HealthMiddleware(hello, health=Health()), "/health")) == (200, {"hello": 1})


@pytest.mark.guarantee(
    "readiness costs a probe a second, not one a request",
    pattern="balancing",
    under="many concurrent requests",
    control="the same test without the cache",
)
@pytest.mark.parametrize(("cache_s", "rounds"), [(60, 1), (0, 3)])
def test_concurrent_requests_share_one_probe(cache_s: float, rounds: int) -> None:
    calls = 0

    async def probe() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)

    async def run() -> None:
        app = HealthMiddleware(hello, health=Health({"database": probe}, cache_s=cache_s))
        for _ in range(3):
            answers = await asyncio.gather(*(request(app, "/health/ready") for _ in range(50)))
            assert {status for status, _ in answers} == {200}

    asyncio.run(run())
    assert calls == rounds  # 0 seconds is the control: each of the three groups has its own round


def test_cancelled_caller_does_not_cancel_the_probe() -> None:
    async def run() -> None:
        health = Health({"database": works})
        first = asyncio.create_task(health.failed_probes())
        second = asyncio.create_task(health.failed_probes())
        await asyncio.sleep(0)
        first.cancel()
        assert await second == ()

    asyncio.run(run())


def test_hanging_probe_in_a_thread_is_not_started_again() -> None:
    calls, release = 0, threading.Event()

    def probe() -> None:
        nonlocal calls
        calls += 1
        release.wait(10)

    async def run() -> None:
        health = Health({"database": probe}, timeout_s=0.02, cache_s=0)
        for _ in range(3):
            assert await health.failed_probes() == ("database",)
        release.set()
        deadline = time.monotonic() + 10
        while await health.failed_probes():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert calls == 2


def test_draining_is_not_ready_and_counts_requests_in_flight() -> None:
    async def run() -> None:
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def slow(scope: dict, receive: Callable, send: Callable) -> None:
            entered.set()
            await go_on.wait()
            await hello(scope, receive, send)

        health = Health()
        app = HealthMiddleware(slow, health=health)
        order = asyncio.create_task(request(app, "/orders", "POST"))
        await entered.wait()
        health.drain()
        assert await request(app, "/health/ready") == (503, {"status": "draining", "in_flight": 1})
        assert (await request(app, "/health/live"))[0] == 200
        go_on.set()
        assert (await order)[0] == 200
        assert health.in_flight == 0

    asyncio.run(run())


def test_failed_request_is_no_longer_in_flight() -> None:
    async def broken(scope: dict, receive: Callable, send: Callable) -> None:
        raise ValueError

    health = Health()
    with pytest.raises(ValueError):
        asyncio.run(request(HealthMiddleware(broken, health=health), "/"))
    assert health.in_flight == 0


def lifespan(app: Callable, messages: list[str]) -> None:
    coming: Iterator[str] = iter(messages)

    async def receive() -> dict:
        return {"type": next(coming)}

    async def send(message: dict) -> None:
        pass

    asyncio.run(app({"type": "lifespan"}, receive, send))


def app_with_lifespan(until: str) -> Callable:
    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        while (await receive())["type"] != until:
            pass

    return app


def test_end_of_lifespan_drains() -> None:
    health = Health()
    app = HealthMiddleware(app_with_lifespan("lifespan.shutdown"), health=health, drain_on_sigterm=False)
    lifespan(app, ["lifespan.startup", "lifespan.shutdown"])
    assert health.draining


@pytest.mark.control(
    "an instance is not ready once SIGTERM came, and finishes its requests", "without the handler"
)
@pytest.mark.parametrize("asked_to", [True, False])
def test_sigterm_drains_and_reaches_the_server(asked_to: bool) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        health = Health()
        app = HealthMiddleware(
            app_with_lifespan("lifespan.startup"), health=health, drain_on_sigterm=asked_to
        )
        lifespan(app, ["lifespan.startup"])
        assert not health.draining
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]
    assert health.draining is asked_to


def test_durations_are_checked() -> None:
    with pytest.raises(SettingsError, match="timeout_s has to be more than 0"):
        Health(timeout_s=0)


SERVED = """
import asyncio, sys
from granian.constants import Interfaces
from granian.server import Server
from tenfold.balancing.health import Health, HealthMiddleware

async def slow(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    print("begun", flush=True)
    while not health.draining:
        await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"finished while draining"})

health = Health()

def load(target):
    return HealthMiddleware(slow, health=health)

if __name__ == "__main__":  # a worker of Python 3.14 imports this file again
    server = Server("x", address="127.0.0.1", port=int(sys.argv[1]), interface=Interfaces.ASGI)
    server.serve(target_loader=load)
"""


@pytest.mark.guarantee(
    "an instance is not ready once SIGTERM came, and finishes its requests",
    pattern="balancing",
    under="SIGTERM to granian",
)
def test_granian_drains_at_sigterm_with_a_request_in_flight(tmp_path: Path) -> None:
    pytest.importorskip("granian")
    import http.client

    from tenfold.stack.ports import free_port

    port, script = free_port(), tmp_path / "served.py"
    script.write_text(SERVED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    server = subprocess.Popen(
        [sys.executable, script, str(port)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            try:
                connection.request("POST", "/order", body=b"1")
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert "begun\n" in iter(server.stdout.readline, "")
        server.terminate()
        assert connection.getresponse().read() == b"finished while draining"
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
