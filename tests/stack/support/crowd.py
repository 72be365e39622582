"""Concurrent clients on kept connections that count every failure."""

from __future__ import annotations

import http.client
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Crowd:
    """The clients' results: ``failed`` by method and reason, ``sent`` POST paths, answering ``pids``."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.failed: Counter[tuple[str, str]] = Counter()
        self.failed_posts: set[str] = set()
        self.sent: list[str] = []
        self.pids: Counter[str] = Counter()
        self._over = threading.Event()
        self._numbers = itertools.count()

    @property
    def answered(self) -> int:
        return sum(self.pids.values())

    def run_client(self) -> None:
        """Run one client: GET and POST in turns over one connection, reopened when lost."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        for method in itertools.cycle(("GET", "POST")):
            if self._over.is_set():
                return connection.close()
            path = f"/{next(self._numbers)}"
            try:
                connection.request(method, path, body=b"x" * 100 if method == "POST" else None)
                answer = connection.getresponse()
                body, reason = answer.read().decode(), str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                reason = type(error).__name__
            if method == "POST":
                self.sent.append(path)
            if reason == "200":
                self.pids[body] += 1
            else:
                self.failed[method, reason] += 1
                self.failed_posts |= {path} if method == "POST" else set()


@contextmanager
def crowd(port: int, *, clients: int = 6) -> Iterator[Crowd]:
    made = Crowd(port)
    threads = [threading.Thread(target=made.run_client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made._over.set()
        for thread in threads:
            thread.join()


def executions(record: Path) -> Counter[str]:
    """Return how often each POST was carried out."""
    return Counter(record.read_text().splitlines())
