"""Latency histograms: HdrHistogram V2, base64, microseconds from 1 µs to 1 hour, three significant digits.

A value is off by 0.1 % at most (128 µs at 200 ms). That is good for percentiles and too coarse at a limit:
whether an arrival was slow is decided on the measured number, never here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tenfold.errors import DependencyError

try:
    from hdrh.histogram import HdrHistogram
except ImportError as missing:
    raise DependencyError(
        "hdrhistogram is not installed; run pip install 'tenfold[measure]' to measure latencies"
    ) from missing

HIGHEST_US = 3_600_000_000
DIGITS = 3
_EXACT_BITS = 11  # 2 · 10^3 rounded up to a power of two: below it every microsecond has its own counter


def encode(values_ms: Iterable[float]) -> str:
    """Encode latencies in milliseconds as a histogram; below zero counts as zero, above an hour as an hour.

    Equal counters are added up before the histogram sees them: recording one value costs two microseconds
    in Python, and a trial has a hundred thousand.
    """
    histogram = _empty()
    for value_us, count in Counter(map(_counter_of, values_ms)).items():
        histogram.record_value(value_us, count)
    return _text(histogram)


def merge(encoded: Iterable[str]) -> str:
    """Add up histograms."""
    histogram = _empty()
    for one in encoded:
        if HdrHistogram.decode(one).get_total_count():
            histogram.decode_and_add(one)
    return _text(histogram)


def count(encoded: str) -> int:
    """Number of recorded latencies."""
    return int(HdrHistogram.decode(encoded).get_total_count())


def mean(encoded: str) -> float:
    """Mean latency in milliseconds; 0 when empty."""
    histogram = HdrHistogram.decode(encoded)
    return float(histogram.get_mean_value()) / 1000 if histogram.get_total_count() else 0.0


def percentiles(encoded: str, points: Sequence[float]) -> dict[float, float]:
    """Latencies in milliseconds at ``points`` (0..100); NaN for an empty histogram."""
    histogram = HdrHistogram.decode(encoded)
    if not histogram.get_total_count():
        return dict.fromkeys(points, math.nan)
    found = histogram.get_percentile_to_value_dict(list(points))
    return {point: found[point] / 1000 for point in points}


def percentile(encoded: str, point: float) -> float:
    """Latency in milliseconds that ``point`` per cent did not exceed; NaN when empty."""
    return percentiles(encoded, (point,))[point]


def share_above(encoded: str, limit_ms: float) -> float:
    """Share of latencies above ``limit_ms``, to the histogram's 0.1 %; 0 when empty.

    A latency that shares its counter with the limit counts as not above it.
    """
    histogram = HdrHistogram.decode(encoded)
    total = histogram.get_total_count()
    if not total:
        return 0.0
    limit_us = min(max(int(limit_ms * 1000), 0), HIGHEST_US)
    above = histogram.get_counts_array_index(limit_us) + 1
    return float(sum(histogram.counts[above:]) / total)


def _empty() -> Any:
    return HdrHistogram(1, HIGHEST_US, DIGITS)


def _text(histogram: Any) -> str:
    return bytes(histogram.encode()).decode("ascii")


def _counter_of(value_ms: float) -> int:
    """Lowest value, in microseconds, that falls into the same counter of the histogram."""
    value = int(value_ms * 1000)
    if value <= 0:
        return 0
    value = min(value, HIGHEST_US)
    shift = max(0, value.bit_length() - _EXACT_BITS)
    return value >> shift << shift
