"""Previews of a change are exact, down to the last of the 2³² positions."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.hashing import HashRing, circle

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.2, 5), max_size=5)
EIGHT = [f"node-{number}" for number in range(8)]


def owner(ring: HashRing, position: int) -> str | None:
    found = ring._circle
    return found.owners[bisect_left(found.points, position)]


@pytest.mark.guarantee("a preview is exact", pattern="hashing", under="any two rings")
@settings(deadline=None)
@given(WEIGHTS, WEIGHTS)
def test_preview_counts_every_position_once(before: dict[str, float], after: dict[str, float]) -> None:
    assert_preview_is_exact(before, after)


@pytest.mark.guarantee("a preview is exact")
@settings(deadline=None)
@given(WEIGHTS, WEIGHTS)
def test_preview_counts_adjacent_points(before: dict[str, float], after: dict[str, float]) -> None:
    """All points lie among the first thirty positions and the last two."""

    def crowded(name: str, start: int, stop: int) -> list[int]:
        places = [*range(30), 2**32 - 2, 2**32 - 1]
        return sorted(places[ord(name) * number * number % 32] for number in range(start, stop))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circle, "node_points", crowded)
        assert_preview_is_exact(before, after)


def assert_preview_is_exact(before: dict[str, float], after: dict[str, float]) -> None:
    """Count in another way: cut the ring behind every point of both, look up both ends of each piece."""
    old, new = HashRing(before, virtual_nodes=9), HashRing(after, virtual_nodes=9)
    cuts = sorted({0, 2**32} | {point + 1 for ring in (old, new) for point in ring._circle.points})
    moved, shares = 0, Counter[str | None]()
    for start, end in pairwise(cuts):
        source, target = owner(old, start), owner(new, start)
        assert (source, target) == (owner(old, end - 1), owner(new, end - 1))
        moved += (end - start) * (source != target)
        shares[source] += end - start
    preview = old.preview(new)
    assert preview.moved == moved / 2**32
    assert preview.before == {name: shares[name] / 2**32 for name in before}
    assert sum(preview.after.values()) == pytest.approx(1 if after else 0)
    if before and after:
        assert sum(preview.moves.values()) == pytest.approx(preview.moved)


@pytest.mark.guarantee("a preview is exact")
def test_keys_move_as_previewed() -> None:
    ring = HashRing(EIGHT)
    other = ring.copy()
    other.add("node-8", weight=2)
    other.remove("node-3")
    keys = [str(number) for number in Random(1).sample(range(10**9), 40_000)]
    moves = Counter(zip(ring.get_many(keys), other.get_many(keys), strict=True))
    preview = ring.preview(other)
    for move, share in preview.moves.items():
        assert moves[move] / len(keys) == pytest.approx(share, abs=4 * (share / len(keys)) ** 0.5)
    assert {target for source, target in preview.moves if source != "node-3"} == {"node-8"}


@pytest.mark.control("a preview is exact")
def test_the_control_equal_shares_hide_moves() -> None:
    """After renaming every node the shares hardly differ, and nearly every key moves."""
    preview = HashRing(EIGHT).preview(HashRing([f"other-{number}" for number in range(8)]))
    assert sorted(preview.before.values()) == pytest.approx(sorted(preview.after.values()), abs=0.03)
    assert preview.moved == 1
    mixed = HashRing([f"node-{number}" for number in range(8)], virtual_nodes=150)
    assert mixed.preview(HashRing(EIGHT, virtual_nodes=151)).moved < 0.05


def test_equal_rings_move_nothing() -> None:
    preview = HashRing(EIGHT).preview(HashRing(reversed(EIGHT)))
    assert (preview.moved, preview.moves, preview.before) == (0, {}, preview.after)


def test_peak_is_relative_to_the_weights() -> None:
    ring = HashRing({"a": 1, "b": 3}, virtual_nodes=1_000)
    shares = ring.shares()
    assert ring.preview(ring).peak_before == pytest.approx(max(shares["a"] * 4, shares["b"] * 4 / 3))
    assert ring.preview(ring).peak_before < 1.2


def test_preview_from_and_to_an_empty_ring() -> None:
    ring = HashRing(EIGHT)
    filled, emptied = HashRing().preview(ring), ring.preview(HashRing())
    assert (filled.moved, filled.moves, filled.peak_before) == (1, {}, 0)
    assert (emptied.moved, emptied.after, emptied.peak_after) == (1, {}, 0)
    assert HashRing().preview(HashRing()).moved == 0


def test_preview_prints_a_short_table() -> None:
    ring = HashRing([f"database-{number}.eu-central.example.com" for number in range(30)])
    other = ring.copy()
    other.remove("database-3.eu-central.example.com")
    lines = str(ring.preview(other)).splitlines()
    assert lines[1].startswith("database-3.eu-central.example") and "–" in lines[1]
    assert "… and 20 more nodes, which change less" in lines
    assert any(line.startswith("peak to average") for line in lines)
    assert any(line.startswith("keys that move") for line in lines)
    assert any("→" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert len(lines) < 30
