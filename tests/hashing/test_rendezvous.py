"""Rendezvous hashing: exact shares at any weight, and moves to or from the changed node only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tenfold.errors import SettingsError
from tenfold.hashing import Rendezvous, rendezvous
from tenfold.hashing.placement import hash64

KEYS = [f"user:{number}" for number in range(300)]
WEIGHTS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.1, 8), min_size=1, max_size=5)


def test_documented_vectors_are_stable() -> None:
    placement = Rendezvous({f"node-{number}": number + 1 for number in range(5)})
    found = [placement.get_node(key) for key in ("", "user:1", "user:2", 42, "Zürich", -1)]
    assert found == [f"node-{number}" for number in (3, 4, 2, 2, 4, 1)]


def p_value(node: Callable[[str], str | None], weights: dict[str, float]) -> float:
    """Return the p-value of the shares found, if each node's true share is that of its weight."""
    counts = Counter(node(f"user:{number}") for number in range(12_000))
    total = sum(weights.values())
    return float(
        chisquare([counts[n] for n in weights], [12_000 * w / total for w in weights.values()]).pvalue
    )


UNEVEN = {"a": 0.3, "b": 1.0, "c": 1.7, "d": 5.0}


@pytest.mark.guarantee(
    "rendezvous gives exactly the weights' shares", pattern="hashing", under="uneven weights"
)
def test_shares_are_proportional_to_the_weights() -> None:
    assert p_value(Rendezvous(UNEVEN).get_node, UNEVEN) > 0.001


@pytest.mark.control("rendezvous gives exactly the weights' shares")
def test_the_control_multiplied_bids_are_not_proportional() -> None:
    def node(key: str) -> str:
        return max(UNEVEN, key=lambda name: UNEVEN[name] * hash64(f"{name}\0{key}".encode()))

    assert p_value(node, UNEVEN) < 0.001


@pytest.mark.guarantee("a change of one node or weight moves no key between others")
@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.sampled_from("abcdefghi"), st.sampled_from([0, 0.5, 3]))
def test_keys_move_to_or_from_the_changed_node_only(
    weights: dict[str, float], changed: str, weight: float
) -> None:
    placement = Rendezvous(weights)
    before = {key: placement.get_node(key) for key in KEYS}
    if weight:
        placement.add(changed, weight=weight)
    elif changed in weights:
        placement.remove(changed)
    after = {key: placement.get_node(key) for key in KEYS}
    assert all(changed in (before[key], after[key]) for key in KEYS if before[key] != after[key])


@settings(deadline=None)
@given(st.permutations("abcde"))
def test_order_of_the_nodes_does_not_matter(names: list[str]) -> None:
    straight, shuffled = Rendezvous(list("abcde")), Rendezvous(names)
    assert [straight.get_nodes(key, 5) for key in KEYS[:20]] == [
        shuffled.get_nodes(key, 5) for key in KEYS[:20]
    ]


@pytest.mark.parametrize("value", [0, 2**64 - 1])
def test_extreme_hashes_make_finite_bids(monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    monkeypatch.setattr(rendezvous, "hash64", lambda data: value)
    assert 0 < rendezvous.bid("a", 1.0, b"x") < inf


def test_removing_an_unknown_node_is_refused() -> None:
    with pytest.raises(SettingsError, match="no node 'x'; there is a"):
        Rendezvous(["a"]).remove("x")
