"""Answers of each endpoint in a trial: raw numbers while it runs, histograms when it is over.

Latencies are kept as they were measured, 16 bytes a request, and become histograms only at the end:
recording into a histogram would cost as much as sending the request.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator

from tenfold.measure.load import histogram
from tenfold.measure.load.arrivals import ArrivalResult
from tenfold.measure.trial import Endpoint

MAX_ENDPOINTS = 200
MAX_MESSAGES = 50
MESSAGE_LENGTH = 200
OTHER = "other endpoints (name= groups requests in a locustfile)"
UNANSWERED = "unanswered"


class EndpointCounts:
    """Latencies, statuses and sizes of one endpoint's answers."""

    __slots__ = ("corrected_ms", "failed", "raw_ms", "refused", "requests", "sizes", "statuses")

    def __init__(self) -> None:
        self.corrected_ms: array[float] = array("d")
        self.raw_ms: array[float] = array("d")
        self.sizes: array[int] = array("q")
        self.statuses: Counter[int | str] = Counter()
        self.requests = 0
        self.failed = 0
        self.refused = 0

    def add(self, status: int | str, result: int, corrected_ms: float, raw_ms: float, size: int) -> None:
        """Count one request; ``status`` 0 means that there was no answer at all.

        A refusal is counted and has no latency: it says nothing about how fast the service answers.
        """
        self.requests += 1
        self.statuses[status] += 1
        if result == ArrivalResult.REFUSED:
            self.refused += 1
            return
        self.corrected_ms.append(corrected_ms)
        self.raw_ms.append(raw_ms)
        if result == ArrivalResult.FAILED:
            self.failed += 1
        else:
            self.sizes.append(size)

    def summary(self, name: str) -> Endpoint:
        """Everything counted so far, with its histograms."""
        return Endpoint(
            name=name,
            requests=self.requests,
            failed=self.failed,
            refused=self.refused,
            statuses={str(status or "error"): count for status, count in _by_frequency(self.statuses)},
            corrected=histogram.encode(self.corrected_ms),
            raw=histogram.encode(self.raw_ms),
            bytes_p50=sorted(self.sizes)[len(self.sizes) // 2] if self.sizes else 0,
        )


class AnswerCounts:
    """Counts of all endpoints of a trial, and error messages; both bounded in number."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, str], EndpointCounts] = {}
        self.unsent_ms: array[float] = array("d")  # how long each unsent arrival waited for a user
        self.errors: Counter[str] = Counter()

    def endpoint(self, method: str, name: str) -> EndpointCounts:
        """The counts of one endpoint; beyond ``MAX_ENDPOINTS`` of them, one shared by all others."""
        counts = self._by_name.get((method, name))
        if counts is None:
            key = (method, name) if len(self._by_name) < MAX_ENDPOINTS else ("", OTHER)
            counts = self._by_name.setdefault(key, EndpointCounts())
        return counts

    def add_error(self, message: str) -> None:
        """Count a message; beyond ``MAX_MESSAGES`` different ones they count as "other errors"."""
        message = " ".join(message.split())[:MESSAGE_LENGTH]
        if message not in self.errors and len(self.errors) >= MAX_MESSAGES:
            message = "other errors"
        self.errors[message] += 1

    @property
    def requests(self) -> int:
        """Requests of all endpoints."""
        return sum(counts.requests for counts in self._by_name.values())

    def summaries(self) -> tuple[Endpoint, ...]:
        """All endpoints, the busiest first."""
        found = sorted(self._by_name.items(), key=lambda item: (-item[1].requests, item[0]))
        return tuple(counts.summary(f"{method} {name}".strip()) for (method, name), counts in found)

    def corrected_ms(self) -> Iterator[float]:
        """Answered requests' latencies from their due times; an unsent arrival took as long as it waited."""
        yield from self.unsent_ms
        for counts in self._by_name.values():
            yield from counts.corrected_ms

    def raw_ms(self) -> Iterator[float]:
        """Latencies of answered requests from their sending."""
        for counts in self._by_name.values():
            yield from counts.raw_ms


def _by_frequency(counts: Counter[int | str]) -> list[tuple[int | str, int]]:
    """Most frequent first, then by name, so that equal trials print equally."""
    return sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
