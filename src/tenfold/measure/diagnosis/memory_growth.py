"""Memory that grows with every request: a leak, told from a cache that fills. Pure.

The slope of memory over requests is fitted in the first and in the last third of a measurement, over means of
two seconds. Memory leaks if the last third still grows, with 95 % confidence, at half of the first third's
pace or more: the growth of a bounded cache falls with every request that finds what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from tenfold.measure.diagnosis.bottleneck import Bottleneck

BLOCK_S = 2.0
LEAST_POINTS = 4  # in each third
LEAST_BYTES = 4 * 2**20  # of growth in all
LEAST_SHARE = 0.02  # of the memory in use
KEEPS_PACE = 0.5
# Student's t, one-sided 97.5 %, by degrees of freedom; 1.96 beyond.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


class MemoryPoint(NamedTuple):
    """The app's memory at one time."""

    at: float  # seconds
    requests: int  # finished so far
    rss_bytes: int
    blocks: int = 0  # allocated by the interpreters; 0 where that is not known


@dataclass(frozen=True, slots=True)
class Growth:
    """Growth for each request, in bytes, in the last third of the measurement."""

    bytes_a_request: float
    low: float  # its lower 95 % limit
    first: float  # in the first third
    grown_bytes: int
    requests: int
    blocks_grow: bool

    @property
    def leaks(self) -> bool:
        """True if it has to be taken for a leak."""
        return self.low > 0 and self.bytes_a_request >= KEEPS_PACE * self.first


def find_growth(points: Sequence[MemoryPoint]) -> Growth | None:
    """Return the growth of memory over a measurement; None for too few points or too little growth."""
    blocks = [_mean(list(group)) for _, group in groupby(points, key=lambda one: int(one.at / BLOCK_S))]
    third = len(blocks) // 3
    if third < LEAST_POINTS:
        return None
    grown = blocks[-1].rss_bytes - blocks[0].rss_bytes
    requests = blocks[-1].requests - blocks[0].requests
    if grown < max(LEAST_BYTES, LEAST_SHARE * blocks[0].rss_bytes) or requests <= 0:
        return None
    first, _ = _slope(blocks[:third])
    last, error = _slope(blocks[-third:])
    return Growth(
        bytes_a_request=last,
        low=last - _t(third - 2) * error,
        first=first,
        grown_bytes=grown,
        requests=requests,
        blocks_grow=blocks[-1].blocks > 1.02 * blocks[0].blocks > 0,
    )


def leak(growth: Growth, *, memory_bytes: int, lines: Sequence[tuple[str, int]] = ()) -> Bottleneck:
    """Return the finding of a leak. ``lines`` of the app hold most of the new memory: line and bytes."""
    full = max(memory_bytes / max(growth.bytes_a_request, 1.0), 1.0)
    kind = "Python objects" if growth.blocks_grow else "not Python objects"
    return Bottleneck(
        cause="memory_growth",
        kind="Memory",
        title=f"memory grows by {growth.bytes_a_request / 1000:,.1f} kB with every request",
        severity="high",
        where=lines[0][0] if lines else None,
        evidence=(
            f"{growth.grown_bytes / 2**20:,.0f} MiB in {growth.requests:,} requests, and no slower at the end",
            f"{kind}; this machine's memory is full after {full:,.0f} requests",
            *(f"{size / 1000:,.0f} kB were kept by {line}" for line, size in lines[:3]),
        ),
        remedy="bound what keeps them (a cache with a size, a list that is emptied), or restart workers after "
        "a number of requests until it is found"
        if growth.blocks_grow
        else "look at native libraries and allocator arenas (MALLOC_ARENA_MAX=2), fewer threads",
    )


def _mean(group: Sequence[MemoryPoint]) -> MemoryPoint:
    count = len(group)
    return MemoryPoint(
        sum(one.at for one in group) / count,
        round(sum(one.requests for one in group) / count),
        round(sum(one.rss_bytes for one in group) / count),
        round(sum(one.blocks for one in group) / count),
    )


def _slope(points: Sequence[MemoryPoint]) -> tuple[float, float]:
    """Return the least-squares slope of memory over requests, and its standard error."""
    count = len(points)
    x = [float(one.requests) for one in points]
    y = [float(one.rss_bytes) for one in points]
    middle_x, middle_y = sum(x) / count, sum(y) / count
    spread = sum((one - middle_x) ** 2 for one in x)
    if spread <= 0:
        return 0.0, math.inf
    slope = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - middle_y - slope * (a - middle_x)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, math.sqrt(rest / max(count - 2, 1) / spread)


def _t(freedom: int) -> float:
    return _T[min(max(freedom, 1), len(_T)) - 1] if freedom <= len(_T) else 1.96
