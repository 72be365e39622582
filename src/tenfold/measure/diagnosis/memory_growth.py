"""Memory that grows with every request: a leak, told from a cache that fills and from more load. Pure.

What counts is the interpreters' allocated blocks (``sys.getallocatedblocks``), the fewest in each second:
the resident memory of a process grows with the number of requests at once, too, and does not fall again.
The first tenth of the requests warms the service up; the slope of blocks over requests is fitted in the
first and in the second half of the time of the others. Memory leaks if the second half still grows, with 95
% confidence, at half of the first one's pace or more: the growth of a bounded cache falls with every
request that finds what it needs. Leaks of native libraries are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from tenfold.measure.diagnosis.bottleneck import Bottleneck

BLOCK_S = 1.0
WARM_UP = 0.1  # of the requests
LEAST_POINTS = 4  # in each half
LEAST_BYTES = 4 * 2**20  # of growth in all
LEAST_SHARE = 0.02  # of the memory in use
LEAST_BLOCKS = 0.5  # a request
KEPT = 0.2  # of the growth: what one line has to keep of it
KEEPS_PACE = 0.5
# Student's t, one-sided 97.5 %, by degrees of freedom; 1.96 beyond.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


class MemoryPoint(NamedTuple):
    """The app's memory at one time."""

    at: float  # seconds
    requests: int  # finished so far
    rss_bytes: int
    blocks: int  # allocated by the interpreters


@dataclass(frozen=True, slots=True)
class Growth:
    """Growth for each request in the second half of a measurement's requests."""

    blocks: float
    blocks_low: float  # its lower 95 % limit
    blocks_first: float  # in the first half
    grown_bytes: int  # resident memory, over the whole measurement
    requests: int

    @property
    def leaks(self) -> bool:
        """True if it has to be taken for a leak."""
        return self.blocks_low > LEAST_BLOCKS and self.blocks >= KEEPS_PACE * self.blocks_first

    @property
    def bytes_a_request(self) -> float:
        """Mean growth of the resident memory."""
        return self.grown_bytes / self.requests


@dataclass(frozen=True, slots=True)
class Kept:
    """What stayed in use after some requests and a collection, in bytes by user line; "" is all of it."""

    requests: int
    by_line: Mapping[str, int]

    @property
    def lines(self) -> list[tuple[str, int]]:
        """The lines that keep the most, those that keep too little for a leak left out."""
        ranked = sorted(self.by_line.items(), key=lambda item: -item[1])
        return [(line, size) for line, size in ranked if line and size >= KEPT * ranked[0][1]]

    def confirms(self, growth: Growth) -> bool:
        """Return whether as much was kept as memory grew by: garbage that waits to be collected is none."""
        most = max((size for line, size in self.by_line.items() if line), default=0)
        expected = growth.bytes_a_request * self.requests
        return most >= KEPT * expected or self.by_line.get("", 0) >= expected


def find_growth(points: Sequence[MemoryPoint]) -> Growth | None:
    """Return the growth of memory over a measurement; None for too few points or too little growth."""
    lowest = [
        min(group, key=lambda one: one.blocks)
        for _, group in groupby(points, key=lambda one: int(one.at / BLOCK_S))
    ]
    if not lowest:
        return None
    begun, requests = lowest[0].requests, lowest[-1].requests - lowest[0].requests
    warm = [one for one in lowest if one.requests - begun >= WARM_UP * requests]
    first, second = warm[: len(warm) // 2], warm[len(warm) // 2 :]
    grown = lowest[-1].rss_bytes - lowest[0].rss_bytes
    if min(len(first), len(second)) < LEAST_POINTS or requests <= 0:
        return None
    if grown < max(LEAST_BYTES, LEAST_SHARE * lowest[0].rss_bytes):
        return None
    before, _ = _slope(first)
    after, error = _slope(second)
    return Growth(after, after - _t(len(second) - 2) * error, before, grown, requests)


def leak(growth: Growth, *, memory_bytes: int, lines: Sequence[tuple[str, int]] = ()) -> Bottleneck:
    """Return the finding of a leak. ``lines`` of the app hold most of the new memory: line and bytes."""
    full = max(memory_bytes / max(growth.bytes_a_request, 1.0), 1.0)
    return Bottleneck(
        cause="memory_growth",
        kind="Memory",
        title=f"memory grows by {growth.bytes_a_request / 1000:,.1f} kB with every request",
        severity="high",
        where=lines[0][0] if lines else None,
        evidence=(
            f"{growth.grown_bytes / 2**20:,.0f} MiB in {growth.requests:,} requests, as fast at the end",
            f"{growth.blocks:,.1f} more Python objects with each; "
            f"this machine's memory is full after {full:,.0f} requests",
            *(f"{size / 1000:,.0f} kB were kept by {line}" for line, size in lines[:3]),
        ),
        remedy="bound what keeps them: a cache with a size, a list that is emptied, weak references",
    )


def _slope(points: Sequence[MemoryPoint]) -> tuple[float, float]:
    """Return the least-squares slope of blocks over requests, and its standard error."""
    count = len(points)
    x = [float(one.requests) for one in points]
    y = [float(one.blocks) for one in points]
    middle_x, middle_y = sum(x) / count, sum(y) / count
    spread = sum((one - middle_x) ** 2 for one in x)
    if spread <= 0:
        return 0.0, math.inf
    slope = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - middle_y - slope * (a - middle_x)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, math.sqrt(rest / max(count - 2, 1) / spread)


def _t(freedom: int) -> float:
    return _T[min(max(freedom, 1), len(_T)) - 1] if freedom <= len(_T) else 1.96
