"""A few clients that send one request again and again: the load of the balancing checks.

As many threads as clients, each with one request at a time; what matters is not how many requests there are
but what became of each. A client makes a new connection for every request, so that an idle one that is closed
under its hands is not taken for a failure of the service.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
MOST_CLIENTS = 64


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: whose, and the status of its answer; 0 when there was none."""

    client: int
    status: int

    @property
    def failed(self) -> bool:
        """Whether there was no answer, or a 5xx."""
        return self.status == 0 or self.status >= 500


@dataclass(frozen=True, slots=True)
class Request:
    """A method, a path, and a body that is JSON when it begins with a brace."""

    line: str
    body: str = ""

    def send(self, url: str) -> int:
        """Send it once; the answer's status, or 0 without an answer."""
        method, _, path = self.line.partition(" ")
        kind = "application/json" if self.body[:1] in ("{", "[") else "application/x-www-form-urlencoded"
        where = urlsplit(url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=TIMEOUT_S)
        try:
            if method == "GET":
                connection.request(method, path, headers={"Connection": "close"})
            else:
                headers = {"Content-Type": kind, "Connection": "close"}
                connection.request(method, path, body=self.body.encode(), headers=headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()
        return answer.status


class Crowd:
    """Clients that send ``request`` to ``url`` until the end of the ``with`` block, and note what came back.

    Args:
        clients: how many, at most 64.
        pause_s: how long each waits between two requests, seconds.
    """

    def __init__(self, url: str, request: Request, *, clients: int = 8, pause_s: float = 0.003) -> None:
        self._url = url
        self._request = request
        self._pause_s = pause_s
        self._over = threading.Event()
        self._sent: list[Sent] = []
        self._threads = [
            threading.Thread(target=self._visit, args=(number,), name=f"client {number}", daemon=True)
            for number in range(min(clients, MOST_CLIENTS))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _visit(self, number: int) -> None:
        while not self._over.wait(self._pause_s):
            self._sent.append(Sent(number, self._request.send(self._url)))

    @property
    def sent(self) -> Sequence[Sent]:
        """Every request that has ended, in that order."""
        return tuple(self._sent)

    def wait_for(self, more: int, *, within_s: float) -> None:
        """Return when ``more`` requests have ended from now on, or the time is over."""
        wanted = len(self._sent) + more
        deadline = time.monotonic() + within_s
        while len(self._sent) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
