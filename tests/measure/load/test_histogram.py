from __future__ import annotations

import math

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.load import histogram

latencies = st.lists(st.floats(0, 3_600_000), max_size=60)


@given(latencies)
def test_encoding_equals_recording_each_value(values: list[float]) -> None:
    plain = HdrHistogram(1, histogram.HIGHEST_US, histogram.DIGITS)
    for value in values:
        plain.record_value(min(int(value * 1000), histogram.HIGHEST_US))
    ours = HdrHistogram.decode(histogram.encode(values))
    assert list(ours.counts[:]) == list(plain.counts[:])
    assert ours.get_total_count() == len(values)


@given(latencies, latencies)
def test_merge_equals_encoding_all_values_together(some: list[float], others: list[float]) -> None:
    merged = HdrHistogram.decode(histogram.merge([histogram.encode(some), histogram.encode(others)]))
    together = HdrHistogram.decode(histogram.encode(some + others))
    assert list(merged.counts[:]) == list(together.counts[:])


@given(st.lists(st.floats(0.01, 100_000), min_size=1, max_size=60), st.floats(1, 100))
def test_percentiles_are_exact_to_three_digits(values: list[float], point: float) -> None:
    rank = max(1, int(point * len(values) / 100 + 0.5))
    exact = sorted(values)[rank - 1]
    assert histogram.percentile(histogram.encode(values), point) == pytest.approx(exact, rel=1e-3, abs=1e-3)


def test_latencies_around_the_limit_are_not_rounded_together() -> None:
    # Locust's own statistics call all of these 200.
    encoded = histogram.encode([195.0, 199.0, 201.0, 205.0])
    assert histogram.share_above(encoded, 200.0) == 0.5
    assert histogram.percentile(encoded, 50) == pytest.approx(199.0, rel=1e-3)


def test_empty_histogram_has_no_percentiles() -> None:
    empty = histogram.encode([])
    assert histogram.count(empty) == 0
    assert math.isnan(histogram.percentile(empty, 99))
    assert histogram.share_above(empty, 1.0) == 0.0
    assert histogram.count(histogram.merge([empty, empty])) == 0
    assert histogram.count(histogram.merge([])) == 0


def test_values_outside_the_range_are_clamped() -> None:
    encoded = histogram.encode([-1.0, 1e12])
    assert histogram.count(encoded) == 2
    assert histogram.percentile(encoded, 100) == pytest.approx(3_600_000, rel=1e-3)
