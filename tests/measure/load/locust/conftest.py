"""A real HTTP server to load, and generators for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from tenfold.measure.load.generator import Generator
from tenfold.measure.settings import MeasureSettings, Objective
from tenfold.measure.trial import TrialRequest


class Service:
    """Answers by path: /fail 500, /refuse 503, /limit 429, /missing 404, /sleep/SECONDS, anything else 200.

    It runs in a thread of the test. ``stall`` makes it stop answering for a while, without hanging up.
    """

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.login_status = 200
        self.url = ""
        self.locks_at: float = float("inf")  # requests at once that lock it up for good
        self.at_once = 0
        self.quota: float = float("inf")  # requests that are answered; 429 after that
        self._stalled_until = 0.0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(5)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def stall(self, seconds: float) -> None:
        self._stalled_until = time.monotonic() + seconds

    def restart(self) -> None:
        """Answer again, and hang up on those who wait."""

        def hang_up() -> None:
            self._stalled_until = 0.0
            for task in asyncio.all_tasks(self._loop):
                if task.get_name() == "connection":
                    task.cancel()

        self._loop.call_soon_threadsafe(hang_up)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("connection")
        with suppress(asyncio.CancelledError):  # the server stops
            await self._serve_connection(reader, writer)

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                for line in head.split("\r\n"):
                    if line.lower().startswith("content-length:"):
                        await reader.readexactly(int(line.split(":")[1]))
                writer.write(await self._answer(head.split(" ", 2)[1]))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str) -> bytes:
        self.seen[path] += 1
        self.at_once += 1
        try:
            return await self._work(path)
        finally:
            self.at_once -= 1

    async def _work(self, path: str) -> bytes:
        if self.at_once > self.locks_at:
            self.stall(1e6)
        self.quota -= 1
        while (stalled := self._stalled_until - time.monotonic()) > 0:
            await asyncio.sleep(stalled)
        if path.startswith("/sleep/"):
            await asyncio.sleep(float(path.rpartition("/")[2]))
        fixed = {"/fail": 500, "/refuse": 503, "/limit": 429, "/missing": 404, "/login": self.login_status}
        body = b'{"token": "t"}'
        return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            429 if self.quota < 0 else fixed.get(path, 200),
            len(body),
            body,
        )


@pytest.fixture
def service() -> Iterator[Service]:
    one = Service()
    one.start()
    yield one
    one.stop()


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a locustfile; the import line is there already."""

    def write(text: str) -> Path:
        path = tmp_path / "locustfile.py"
        path.write_text(
            "from locust import FastHttpUser, HttpUser, SequentialTaskSet, TaskSet, User\n"
            "from locust import between, constant, events, tag, task\n" + dedent(text)
        )
        return path

    return write


@pytest.fixture
def generator(service: Service, scenario: Callable[[str], Path]) -> Iterator[Callable[..., Generator]]:
    """Makes generators for a locustfile's text, entered, and closed at the end."""
    made: list[Generator] = []

    def make(text: str, *, slow_ms: float = 200.0, max_users: int = 50, **options: Any) -> Generator:
        settings = MeasureSettings(objective=Objective(slow_ms=slow_ms), max_users=max_users)
        made.append(Generator(scenario(text), service.url, settings=settings, **options))
        return made[-1].__enter__()

    yield make
    for one in made:
        one.__exit__(None, None, None)


@pytest.fixture
def request_for() -> Callable[..., TrialRequest]:
    def make(rate: float = 120.0, duration_s: float = 0.4, **options: Any) -> TrialRequest:
        return TrialRequest(
            **({"rate": rate, "duration_s": duration_s, "purpose": "search", "seed": 1} | options)
        )

    return make
