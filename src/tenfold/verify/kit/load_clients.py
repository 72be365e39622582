"""Closed-loop load for the checks: a few clients that send one request again and again.

One thread for each client, each with one request at a time. The checks look at what became of each request,
not at the rate. A client opens a new connection for every request, so that an idle connection that the
server closes at that moment does not count as a failure.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

JOIN_S = 30.0
MOST_CLIENTS = 512
_AFTER_FAILURE_S = 0.05  # the sockets of a killed process group close one after the other


@dataclass(frozen=True, slots=True)
class SentRequest:
    """One request: the number of its client, and the status of its answer; 0 without one."""

    client: int
    status: int

    @property
    def failed(self) -> bool:
        """True if there was no answer, or a 5xx."""
        return self.status == 0 or self.status >= 500


def status_summary(sent: Iterable[SentRequest]) -> str:
    """The most frequent statuses: ``502: 4, no answer: 1``."""
    counts = Counter(str(one.status) if one.status else "no answer" for one in sent)
    return ", ".join(f"{status}: {count}" for status, count in counts.most_common(3))


class LoadClients:
    """Clients that send requests until the end of the ``with`` block and record the statuses.

    Args:
        send: sends one request as the client of this number, from 0 on; returns the answer's status, 0
            without one. Called from a thread for each client.
        clients: their number, at most 512.
        pause_s: how long each waits between two requests, seconds.
    """

    def __init__(self, send: Callable[[int], int], *, clients: int = 8, pause_s: float = 0.003) -> None:
        self._send = send
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._sent: list[SentRequest] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"client {number}", daemon=True)
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
        self._stopping.set()
        for thread in self._threads:
            thread.join(JOIN_S)

    def _run(self, number: int) -> None:
        pause_s = self._pause_s
        while not self._stopping.wait(pause_s):
            sent = SentRequest(number, self._send(number))
            self._sent.append(sent)
            pause_s = _AFTER_FAILURE_S if sent.failed else self._pause_s

    @property
    def sent(self) -> Sequence[SentRequest]:
        """Every request that has ended, in that order."""
        return tuple(self._sent)

    def wait_for(self, more: int, *, within_s: float) -> None:
        """Return when ``more`` requests have ended from now on, or after ``within_s`` seconds."""
        wanted = len(self._sent) + more
        deadline = time.monotonic() + within_s
        while len(self._sent) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
