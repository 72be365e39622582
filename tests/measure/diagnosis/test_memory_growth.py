"""Memory that grows with every request: a leak is told from a cache that fills and from noise."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.diagnosis.memory_growth import Kept, MemoryPoint, find_growth, leak

MIB = 2**20


def course(memory: object, *, seconds: int = 60, rate: int = 100, noise: int = 0) -> list[MemoryPoint]:
    """Sample twice a second; ``memory`` gives bytes by requests."""
    chance = random.Random(1)
    points = []
    for step in range(2 * seconds):
        requests = step * rate // 2
        rss = 100 * MIB + int(memory(requests)) + chance.randint(0, noise or 1)  # type: ignore[operator]
        points.append(MemoryPoint(step / 2, requests, rss, 1_000_000 + int(memory(requests)) // 100))  # type: ignore[operator]
    return points


def leaking(requests: int) -> float:
    return 10_000.0 * requests


def filling(requests: int) -> float:
    """A cache of a thousand texts, each request for one at random."""
    return 20_000 * 1000 * (1 - 0.999**requests)


@pytest.mark.guarantee("memory that grows with every request is reported", pattern="measure")
@pytest.mark.parametrize("noise", [0, MIB])
def test_leak_is_found_with_its_bytes_a_request(noise: int) -> None:
    found = find_growth(course(leaking, noise=noise))
    assert found is not None and found.leaks
    assert found.bytes_a_request == pytest.approx(10_000, rel=0.15)
    told = leak(found, memory_bytes=24 * 2**30, lines=[("app.py:7", 5_000_000)])
    assert (told.cause, told.where) == ("memory_growth", "app.py:7")
    assert "kB with every request" in told.title and "5,000 kB were kept by app.py:7" in told.evidence


@pytest.mark.control("memory that grows with every request is reported", "bounded memory")
@pytest.mark.parametrize(
    "memory", [filling, lambda n: 0, lambda n: 50 * MIB * min(n / 500, 1)], ids=["cache", "flat", "warm-up"]
)
def test_bounded_memory_is_no_leak(memory: object) -> None:
    found = find_growth(course(memory, noise=MIB))
    assert found is None or not found.leaks


@pytest.mark.parametrize(
    ("kept", "confirmed"),
    [
        ({"": 900_000, "app.py:7": 400_000}, True),
        ({"": 1_100_000}, True),  # in a library, without a line of the service
        ({"": 90_000, "app.py:7": 50_000}, False),  # objects that only waited for their collection
        ({}, False),
    ],
)
def test_leak_is_confirmed_by_what_stays_after_a_collection(kept: dict[str, int], confirmed: bool) -> None:
    growth = find_growth(course(leaking))
    assert growth is not None
    assert Kept(100, kept).confirms(growth) == confirmed


def test_lines_that_keep_little_are_left_out() -> None:
    kept = Kept(100, {"": 1000, "a.py:1": 900, "b.py:2": 300, "c.py:3": 50})
    assert kept.lines == [("a.py:1", 900), ("b.py:2", 300)]


def test_leak_is_found_under_a_load_that_doubles() -> None:
    """As a search does: few requests at first, whose memory is that of the warm-up, and most at the end."""
    requests, points = 0, []
    for step in range(120):
        requests += int(2 ** (step / 15))
        blocks = 1_000_000 + 200_000 * min(step / 5, 1) + 20 * requests
        points.append(MemoryPoint(step / 2, requests, 100 * MIB + 25_000 * requests, int(blocks)))
    found = find_growth(points)
    assert found is not None and found.leaks
    assert found.blocks == pytest.approx(20, rel=0.1)


def test_memory_of_more_requests_at_once_is_no_leak() -> None:
    """Threads and arenas stay when the load is over; the objects of their requests do not."""
    points = [
        one._replace(blocks=1_000_000 + 20_000 * (int(one.at) % 10 > 3)) for one in course(leaking, noise=MIB)
    ]
    found = find_growth(points)
    assert found is not None and not found.leaks


@pytest.mark.parametrize("points", [[], course(leaking, seconds=6), course(leaking, rate=0)])
def test_too_little_is_known_of_a_short_measurement(points: list[MemoryPoint]) -> None:
    assert find_growth(points) is None


@given(st.lists(st.tuples(st.integers(0, 10**5), st.integers(0, 2**34)), min_size=2, max_size=200))
def test_any_course_has_a_growth_or_none(steps: list[tuple[int, int]]) -> None:
    points, requests = [], 0
    for number, (more, rss) in enumerate(steps):
        requests += more
        points.append(MemoryPoint(number / 2, requests, rss, rss // 64))
    found = find_growth(points)
    assert found is None or found.grown_bytes > 0
