"""Bounded loads: no node holds more than its bound, whatever the keys are."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import SettingsError
from tenfold.hashing import BoundedLoads, HashRing, Jump, Placement, Rendezvous

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.2, 5), min_size=1)
# A few keys, so that they collide; a number releases one of the slots held.
STEPS = st.lists(st.one_of(st.sampled_from(["hot", "warm", "cold"]), st.integers(0, 99)), max_size=80)


def bound(placement: Placement, node: str, held: int, factor: float) -> int:
    return ceil(factor * held * placement.nodes[node] / sum(placement.nodes.values()))


@pytest.mark.guarantee("no acquisition exceeds a node's bound", pattern="hashing", under="one hot key")
@settings(deadline=None)
@given(WEIGHTS, st.floats(1.01, 3), STEPS)
def test_acquire_never_exceeds_the_bound(
    weights: dict[str, float], factor: float, steps: list[str | int]
) -> None:
    ring = HashRing(weights, virtual_nodes=10)
    bounded, held = BoundedLoads(ring, factor=factor), list[str]()
    for step in steps:
        if isinstance(step, str):
            node = bounded.acquire(step)
            assert node is not None
            held.append(node)
            assert bounded.loads[node] <= bound(ring, node, len(held), factor)
        elif held:
            bounded.release(held.pop(step % len(held)))
        assert bounded.loads == Counter(held)


@pytest.mark.control("no acquisition exceeds a node's bound")
def test_the_control_without_a_bound_one_hot_key_fills_one_node() -> None:
    ring = HashRing(list("abcd"))
    loads = Counter(ring.get_node("hot") for _ in range(100))
    assert max(loads.values()) > bound(ring, "a", 100, 1.25)
    bounded = BoundedLoads(ring)
    for _ in range(100):
        bounded.acquire("hot")
    assert max(bounded.loads.values()) == 32  # ceil(1.25 · 100 / 4)


@pytest.mark.parametrize("placement", [HashRing(list("abc")), Rendezvous(list("abc")), Jump(list("abc"))])
def test_key_gets_its_first_node_while_it_has_room(placement: Placement) -> None:
    bounded = BoundedLoads(placement, factor=2)
    assert bounded.acquire("x") == placement.get_node("x")
    first, second, third = placement.get_nodes("x", 3)
    assert bounded.get_nodes("x", 3) == [first, second, third]
    bounded.acquire("x")
    assert bounded.loads == {first: 2}  # ceil(2 · 2 / 3)
    assert bounded.get_nodes("x", 3) == [second, third, first]
    assert bounded.acquire("x") == second


def test_get_node_takes_no_slot() -> None:
    bounded = BoundedLoads(HashRing(["a"]))
    assert bounded.get_node("x") == "a"
    assert bounded.loads == {}


def test_hold_releases_its_slot_after_an_error() -> None:
    bounded = BoundedLoads(HashRing(["a"]))
    with pytest.raises(RuntimeError), bounded.hold("x") as node:
        assert (node, dict(bounded.loads)) == ("a", {"a": 1})
        raise RuntimeError
    assert bounded.loads == {}
    with BoundedLoads(HashRing()).hold("x") as node:
        assert node is None


def test_releasing_twice_is_refused() -> None:
    bounded = BoundedLoads(HashRing(["a"]))
    bounded.acquire("x")
    bounded.release("a")
    with pytest.raises(SettingsError, match="release each once"):
        bounded.release("a")
    assert bounded.loads == {}


def test_node_may_be_removed_while_its_slots_are_held() -> None:
    ring = HashRing(["a", "b"])
    bounded = BoundedLoads(ring)
    held = [bounded.acquire("x") for _ in range(10)]
    ring.remove("a")
    assert bounded.acquire("x") == "b"
    for node in held:
        bounded.release(str(node))
    assert bounded.loads == {"b": 1}


def test_threads_keep_the_count_exact() -> None:
    bounded = BoundedLoads(HashRing(list("abcd")))

    def acquire_and_release(number: int) -> None:
        with bounded.hold(number):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(acquire_and_release, range(400)))
    assert bounded.loads == {}


@pytest.mark.parametrize("factor", [1, 0.5, float("nan"), float("inf")])
def test_factor_that_leaves_no_room_is_refused(factor: float) -> None:
    with pytest.raises(SettingsError, match="always a node with room"):
        BoundedLoads(HashRing(["a"]), factor=factor)
