"""Lookups while another thread changes the ring see the ring before or after, never one in between."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from tenfold.hashing import HashRing

KEYS = [f"user:{number}" for number in range(300)]
STEADY = [f"node-{number}" for number in range(20)]


@pytest.fixture(autouse=True)
def short_switch_interval() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def wrong_keys(ring: HashRing, allowed: dict[str, set[str | None]], done: Event) -> set[str]:
    """Look keys up until ``done`` is set; return those found on a node where no ring ever had them."""
    wrong = set()
    while not done.is_set():
        wrong |= {key for key in KEYS if ring.get_node(key) not in allowed[key]}
        wrong |= {
            key for key, node in zip(KEYS, ring.get_many(KEYS), strict=True) if node not in allowed[key]
        }
        wrong |= {key for key in KEYS[:20] if len(set(ring.get_nodes(key, 3))) != 3}
    return wrong


def allowed(ring: HashRing, comes: str, goes: str) -> dict[str, set[str | None]]:
    """Return key → its nodes on all rings that exist during the changes."""
    rings = [ring]
    for changes in ([("add", comes)], [("remove", goes)], [("add", comes), ("remove", goes)]):
        other = ring.copy()
        for method, node in changes:
            getattr(other, method)(node)
        rings.append(other)
    return {key: {each.get_node(key) for each in rings} for key in KEYS}


def change_while_reading(ring: HashRing, rounds: int) -> set[str]:
    known, done = allowed(ring, "new", "node-3"), Event()
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(wrong_keys, ring, known, done) for _ in range(3)]
        try:
            for _ in range(rounds):
                ring.add("new")
                ring.remove("node-3")
                ring.add("node-3")
                ring.remove("new")
        finally:
            done.set()
        return set().union(*(reader.result() for reader in readers))


@pytest.mark.guarantee(
    "a lookup sees the ring before a change or after it", pattern="hashing", under="changes in another thread"
)
def test_concurrent_lookup_never_sees_a_partial_change() -> None:
    ring = HashRing(STEADY)
    assert change_while_reading(ring, rounds=200) == set()
    assert ring.fingerprint == HashRing(STEADY).fingerprint


@pytest.mark.control("a lookup sees the ring before a change or after it")
def test_the_control_in_place_change_is_detected() -> None:
    """The same change in two steps, owners first and points later, with a reader in between."""
    ring, after = HashRing(STEADY), HashRing([*STEADY, "new"])
    known = allowed(ring, "new", "node-3")
    before, now = ring._circle, after._circle
    before.owners = now.owners
    assert {key for key in KEYS if ring.get_node(key) not in known[key]} != set()
    before.points = now.points
    assert {key for key in KEYS if ring.get_node(key) not in known[key]} == set()


def test_changes_from_many_threads_are_all_applied() -> None:
    ring = HashRing(["first"])
    names = [f"node-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ring.add, names))
    assert ring.fingerprint == HashRing(["first", *names]).fingerprint
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ring.remove, names))
    assert list(ring.nodes) == ["first"]
