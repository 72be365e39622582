"""Placements go to other processes, and take the numbers that other libraries have."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction

import numpy
import pytest

from tenfold.errors import SettingsError
from tenfold.hashing import BoundedLoads, HashRing, Jump, Rendezvous

WEIGHTS = {"a": 1.0, "b": 2.5, "c": 1.0}
KEYS = [f"key {number}" for number in range(200)]


@pytest.mark.parametrize(
    "placement",
    [
        HashRing(WEIGHTS, virtual_nodes=17),
        Rendezvous(WEIGHTS),
        Jump(["c", "a", "b"]),
        BoundedLoads(HashRing(WEIGHTS), factor=1.5),
    ],
    ids=lambda placement: type(placement).__name__,
)
@pytest.mark.parametrize("duplicate", [lambda one: pickle.loads(pickle.dumps(one)), copy.copy, copy.deepcopy])
def test_copy_places_keys_alike(placement, duplicate) -> None:
    made = duplicate(placement)
    assert [made.get_node(key) for key in KEYS] == [placement.get_node(key) for key in KEYS]
    assert list(made.nodes.items()) == list(placement.nodes.items())


def test_copied_ring_has_the_fingerprint_and_changes_alone() -> None:
    ring = HashRing(WEIGHTS, virtual_nodes=17)
    made = pickle.loads(pickle.dumps(ring))
    assert made.fingerprint == ring.fingerprint
    made.remove("a")
    assert "a" in ring


def test_slots_stay_in_their_process() -> None:
    bounded = BoundedLoads(HashRing(WEIGHTS), factor=1.5)
    bounded.acquire("x")
    assert not pickle.loads(pickle.dumps(bounded)).loads


@pytest.mark.parametrize(
    "two", [numpy.float32(2), numpy.float64(2), numpy.int64(2), numpy.uint8(2), Fraction(2)]
)
def test_weights_may_be_numbers_of_any_type(two) -> None:
    plain, made = HashRing({"a": 1, "b": 2}), HashRing({"a": 1, "b": two})
    assert made.fingerprint == plain.fingerprint
    plain.add("c", weight=2)
    made.add("c", weight=two)
    assert made.fingerprint == plain.fingerprint
    assert type(made.nodes["b"]) is float
    assert Rendezvous({"b": two}).nodes == {"b": 2.0}


@pytest.mark.parametrize("weight", [numpy.float64("nan"), numpy.int64(0), "2", None, 1j, numpy.array([1, 2])])
def test_other_weights_are_refused(weight) -> None:
    with pytest.raises(SettingsError):
        HashRing({"a": weight})
