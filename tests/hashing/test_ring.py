"""The ring: who gets which key, and who loses none when nodes come, go or change their weight."""

from __future__ import annotations

import os
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha512
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import SettingsError
from tenfold.hashing import HashRing, circle

KEYS = [f"user:{number}" for number in range(2_000)]
NAMES = st.lists(st.text("abcdxyz-é", min_size=1, max_size=4), min_size=1, max_size=6, unique=True)
WEIGHTS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.1, 8), min_size=1, max_size=6)

Placed = dict[str, str | None]
Moves = set[tuple[str | None, str | None]]


def placed(ring: HashRing) -> Placed:
    return {key: ring.get_node(key) for key in KEYS}


def moves(before: Placed, after: Placed) -> Moves:
    """(from, to) for every key that changed its node."""
    return {(before[key], after[key]) for key in before if before[key] != after[key]}


def among_others(
    found: set[tuple[str | None, str | None]], changed: str
) -> set[tuple[str | None, str | None]]:
    """The moves that have nothing to do with the node that changed."""
    return {move for move in found if changed not in move}


# ------------------------------------------------------------------ one definition, everywhere


def test_the_definition_in_the_docs_is_complete() -> None:
    """Written from docs/hashing.md alone, with nothing of tenfold's, and it places alike."""
    weights = {"node-0": 1.0, "node-1": 2.0, "übrig": 0.5}
    points = sorted(
        (int.from_bytes(sha512((i // 16).to_bytes(4) + name.encode()).digest()[i % 16 * 4 :][:4]), name)
        for name, weight in weights.items()
        for i in range(round(150 * weight))
    )
    ring = HashRing(weights)
    for key in KEYS:
        place = crc32(key.encode()) * 2654435761 % 2**32
        following = [name for point, name in points if point >= place]
        assert ring.get_node(key) == (following or [points[0][1]])[0]


@pytest.mark.parametrize(
    ("key", "node"),
    [("", 4), ("user:1", 1), ("user:2", 1), (42, 4), ("Zürich", 0), (-1, 0)],
)
def test_vectors_never_change(key: str | int, node: int) -> None:
    assert HashRing([f"node-{number}" for number in range(5)]).get_node(key) == f"node-{node}"


def test_points_never_change() -> None:
    assert circle.node_points("node-0", 0, 150)[:3] == [11306073, 19183858, 60335954]
    assert circle.node_points("node-0", 0, 1) == [1970547353]
    assert circle.node_points("node-0", 17, 18) == [1679011090]


def test_fingerprints_never_change() -> None:
    assert HashRing({"a": 1, "b": 2.5}).fingerprint == "b560d69bf6b1584e"


SEEDED = """
from tenfold.hashing import HashRing
ring = HashRing(["a", "b", "c"])
print([ring.get_node(f"user:{n}") for n in range(50)], ring.fingerprint)
print([hash(f"user:{n}") % 3 for n in range(50)])
"""


def test_processes_agree_where_pythons_own_hash_does_not() -> None:
    answers = [
        subprocess.run(
            [sys.executable, "-c", SEEDED],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for seed in ("1", "2")
    ]
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] != answers[1][1]  # the control: hash() would have been noticed


# ------------------------------------------------------------------ what moves


@settings(deadline=None)
@given(WEIGHTS, st.floats(0.1, 8))
def test_a_new_node_takes_and_nobody_else_gets(weights: dict[str, float], weight: float) -> None:
    ring = HashRing(weights, virtual_nodes=20)
    before = placed(ring)
    ring.add("new", weight=weight)
    assert {target for _, target in moves(before, placed(ring))} <= {"new"}


@settings(deadline=None)
@given(WEIGHTS, st.data())
def test_a_node_that_goes_gives_and_nobody_else_loses(weights: dict[str, float], data: st.DataObject) -> None:
    ring = HashRing(weights, virtual_nodes=20)
    gone = data.draw(st.sampled_from(sorted(weights)))
    before = placed(ring)
    ring.remove(gone)
    assert {source for source, _ in moves(before, placed(ring))} <= {gone}


@settings(deadline=None)
@given(WEIGHTS, st.floats(0.1, 8), st.data())
def test_a_weight_moves_keys_of_its_own_node_only(
    weights: dict[str, float], weight: float, data: st.DataObject
) -> None:
    ring = HashRing(weights, virtual_nodes=20)
    changed = data.draw(st.sampled_from(sorted(weights)))
    before = placed(ring)
    ring.add(changed, weight=weight)
    found = moves(before, placed(ring))
    assert among_others(found, changed) == set()
    assert len({source == changed for source, _ in found}) <= 1  # all of them in one direction


def test_the_control_weights_by_rank_move_keys_among_others() -> None:
    """Points shared out in proportion to the sum of weights, as ketama does: a change touches everybody."""

    def ring(weights: dict[str, float]) -> HashRing:
        whole = sum(weights.values())
        return HashRing({name: len(weights) * weight / whole for name, weight in weights.items()})

    before, after = placed(ring({"a": 1, "b": 1, "c": 1})), placed(ring({"a": 1, "b": 1, "c": 3}))
    assert among_others(moves(before, after), "c") != set()


# ------------------------------------------------------------------ one ring, whichever way it came about


def crowded(name: str, start: int, stop: int) -> list[int]:
    """Points of a ring with 40 places, so that nodes meet at most of them."""
    digest = sha512(name.encode()).digest()
    return sorted(digest[number % 64] % 40 for number in range(start, stop))


POINTS = pytest.mark.parametrize("points", [circle.node_points, crowded], ids=["spread", "crowded"])


@contextmanager
def placed_by(points: Callable[..., list[int]]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circle, "node_points", points)
        yield


def contents(ring: HashRing) -> tuple[list[int], list[str | None], dict[str, float]]:
    found = ring._circle
    return list(found.points), found.owners, dict(found.weights)


@POINTS
@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([0, 0.5, 1, 2])), max_size=12))
def test_the_way_there_does_not_matter(
    points: Callable[..., list[int]], steps: list[tuple[str, float]]
) -> None:
    with placed_by(points):
        ring, weights = HashRing(virtual_nodes=6), dict[str, float]()
        for name, weight in steps:
            if weight:
                ring.add(name, weight=weight)
                weights[name] = weight
            elif name in weights:
                ring.remove(name)
                del weights[name]
        anew = HashRing(dict(reversed(weights.items())), virtual_nodes=6)
    assert contents(ring) == contents(anew)
    assert ring.fingerprint == anew.fingerprint


@POINTS
@settings(deadline=None)
@given(names=NAMES, data=st.data())
def test_the_order_of_the_nodes_does_not_matter(
    points: Callable[..., list[int]], names: list[str], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(names))
    with placed_by(points):
        assert contents(HashRing(names)) == contents(HashRing(shuffled))


def test_the_control_where_the_last_to_come_wins_the_order_matters() -> None:
    def owners(names: str) -> dict[int, str]:
        return {point: name for name in names for point in crowded(name, 0, 20)}

    assert owners("abc") != owners("cba")


# ------------------------------------------------------------------ the rest of what it says


def test_an_empty_ring_has_no_node() -> None:
    ring = HashRing()
    assert ring.get_node("x") is None
    assert ring.get_nodes("x", 3) == []
    assert ring.get_many(["x"] * 1000) == [None] * 1000
    ring.add("a")
    assert ring.get_node("x") == "a"
    ring.remove("a")
    assert ring.get_node("x") is None


@settings(deadline=None)
@given(NAMES, st.integers(0, 8), st.text())
def test_several_nodes_are_distinct_and_the_first_is_the_node(names: list[str], n: int, key: str) -> None:
    ring = HashRing(names, virtual_nodes=3)
    found = ring.get_nodes(key, n)
    assert len(found) == len(set(found)) == min(n, len(names))
    assert found[:1] == [ring.get_node(key)][:n]


def test_the_second_node_is_the_one_that_takes_over() -> None:
    ring = HashRing("abcdefgh".__iter__())
    for key in KEYS[:200]:
        first, second = ring.get_nodes(key, 2)
        without = ring.copy()
        without.remove(first)
        assert without.get_node(key) == second


def test_shares_follow_the_weights() -> None:
    shares = HashRing({"a": 1, "b": 2, "c": 5}, virtual_nodes=2_000).shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert [shares[name] for name in "abc"] == pytest.approx([1 / 8, 2 / 8, 5 / 8], rel=0.1)


def test_a_copy_changes_alone() -> None:
    ring = HashRing(["a", "b"])
    copy = ring.copy()
    copy.add("c")
    copy.remove("a")
    assert (list(ring.nodes), sorted(copy.nodes), len(copy), "c" in ring) == (
        ["a", "b"],
        ["b", "c"],
        2,
        False,
    )


def test_a_view_of_the_nodes_stays_as_it_was() -> None:
    ring = HashRing(["a"])
    nodes = ring.nodes
    ring.add("b")
    assert dict(nodes) == {"a": 1}
    with pytest.raises(TypeError):
        nodes["c"] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HashRing("abc"), "several names"),
        (lambda: HashRing(["a", "a"]), "'a' is there twice"),
        (lambda: HashRing([""]), "printable text"),
        (lambda: HashRing(["a\0b"]), "printable text"),
        (lambda: HashRing([1]), "printable text"),  # type: ignore[list-item]
        (lambda: HashRing({"a": 0}), "is removed"),
        (lambda: HashRing({"a": float("nan")}), "above 0"),
        (lambda: HashRing({"a": -1}), "above 0"),
        (lambda: HashRing(["a"], virtual_nodes=0), "between 1 and 10,000"),
        (lambda: HashRing(["a"], virtual_nodes=1.5), "whole number"),  # type: ignore[arg-type]
        (lambda: HashRing({"a": 10_000}, virtual_nodes=10_000), "at most 1,000,000 points"),
        (lambda: HashRing({"a": 1}, virtual_nodes=10_000).add("b", weight=100), "at most 1,000,000 points"),
        (lambda: HashRing(["b", "a"]).remove("c"), "no node 'c'; there is a, b"),
        (lambda: HashRing().remove("c"), "none at all"),
        (lambda: HashRing(["a"]).get_node(1.5), "text, bytes or a whole number"),  # type: ignore[arg-type]
        (lambda: HashRing(["a"]).get_node(True), "not bool"),
        (lambda: HashRing(["a"]).get_many([None] * 600), "not NoneType"),  # type: ignore[list-item]
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


# ------------------------------------------------------------------ the quality of the hash


COUNTING: dict[str, Callable[[int], str | bytes]] = {
    "numbers": str,
    "names": lambda n: f"user:{n}",
    "hundreds": lambda n: f"tenant-{n * 100}",
    "hexadecimal": lambda n: f"{n:08X}",
    "paths": lambda n: f"/shop/{n // 300}/cart/{n % 300}",
    "binary": lambda n: n.to_bytes(8, "little"),
    "addresses": lambda n: f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}",
}


@pytest.mark.parametrize("key", COUNTING.values(), ids=list(COUNTING))
def test_keys_that_count_up_spread_as_if_drawn_by_chance(key: Callable[[int], str | bytes]) -> None:
    """Chi-squared of 1,000 nodes' counts, given their exact shares; by chance 1 ± 0.045."""
    assert 0.8 < _chi_squared(lambda n: HASHED.get_node(key(n))) < 1.2


def test_the_control_a_hash_that_does_not_mix_is_seen() -> None:
    """CRC-32 as it is, without the multiplication: of keys that count up, neighbours stay neighbours."""
    found = HASHED._circle
    plain = _chi_squared(lambda n: found.owners[bisect_left(found.points, crc32(n.to_bytes(4)))])
    assert not 0.8 < plain < 1.2


HASHED = HashRing([f"node-{number}" for number in range(1_000)], virtual_nodes=20)


def _chi_squared(node: Callable[[int], str | None]) -> float:
    counts = dict.fromkeys(HASHED.nodes, 0)
    for number in range(60_000):
        counts[str(node(number))] += 1
    expected = {name: 60_000 * share for name, share in HASHED.shares().items()}
    return sum((counts[name] - e) ** 2 / e for name, e in expected.items()) / (len(counts) - 1)
