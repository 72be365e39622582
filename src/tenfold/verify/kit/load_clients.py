"""A few clients that send one request again and again: the load of the checks.

As many threads as clients, each with one request at a time; what matters is not how many requests there are
but what became of each. A client makes a new connection for every request, so that an idle one that is closed
under its hands is not taken for a failure of the service.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tenfold.verify.kit.useragent import UserAgent

TIMEOUT_S = 30.0
MOST_CLIENTS = 512


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
        """Send it once, as a stranger; the answer's status, or 0 without an answer."""
        return UserAgent(url, timeout_s=TIMEOUT_S).status_of(self.line, body=self.body)


def statuses(sent: Iterable[Sent]) -> str:
    """What came back, by frequency: ``502: 4, no answer: 1``."""
    counts = Counter(str(one.status) if one.status else "no answer" for one in sent)
    return ", ".join(f"{status}: {count}" for status, count in counts.most_common(3))


class Crowd:
    """Clients that send requests until the end of the ``with`` block, and note what came back.

    Args:
        send: sends one request as the client of this number, from 0 on; returns the answer's status, 0
            without one. Called from a thread for each client.
        clients: how many, at most 512.
        pause_s: how long each waits between two requests, seconds.
    """

    def __init__(self, send: Callable[[int], int], *, clients: int = 8, pause_s: float = 0.003) -> None:
        self._send = send
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
            self._sent.append(Sent(number, self._send(number)))

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
