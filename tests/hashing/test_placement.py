"""Keys: equal ids, stable positions, and the protocol that every placement satisfies."""

from __future__ import annotations

from uuid import UUID

import pytest

from tenfold.errors import SettingsError
from tenfold.hashing import BoundedLoads, HashRing, Jump, Key, Placement, Rendezvous
from tenfold.hashing.placement import MULTIPLIER, POSITIONS, encode_key, hash64, ring_position

NODES = [f"node-{number}" for number in range(7)]


@pytest.mark.parametrize(
    ("key", "position"),
    [("", 0), ("a", 0xFA5D3753), ("user:1", 0xDC78EDE2), ("Zürich", 0x0E6051DE), (42, 0xE0065608)],
)
def test_positions_are_stable(key: Key, position: int) -> None:
    assert ring_position(key) == position


def test_hash64_is_stable() -> None:
    assert hash64(b"") == 0xE3B0C44298FC1C14  # SHA-256 of an empty text, FIPS 180-4


@pytest.mark.parametrize(
    "alike", [(42, "42", b"42"), (-7, "-7"), ("é", "é".encode()), (b"x", bytearray(b"x"))]
)
@pytest.mark.parametrize(
    "placement", [HashRing(NODES), Rendezvous(NODES), Jump(NODES), BoundedLoads(HashRing(NODES))]
)
def test_equal_ids_of_different_types_are_one_key(placement: Placement, alike: tuple[Key, ...]) -> None:
    assert len({placement.get_node(key) for key in alike}) == 1
    assert len({encode_key(key) for key in alike}) == 1


@pytest.mark.parametrize("key", [None, 1.0, True, ("a", 1), UUID(int=1)])
def test_keys_of_other_types_are_refused(key: object) -> None:
    with pytest.raises(SettingsError, match=f"not {type(key).__name__}"):
        encode_key(key)  # type: ignore[arg-type]


def test_each_position_belongs_to_one_crc() -> None:
    assert pow(MULTIPLIER, -1, POSITIONS) * MULTIPLIER % POSITIONS == 1  # odd, so it is invertible


def test_every_placement_satisfies_the_protocol() -> None:
    placements: list[Placement] = [
        HashRing(NODES),
        Rendezvous(NODES),
        Jump(NODES),
        BoundedLoads(Rendezvous(NODES)),
    ]
    for placement in placements:
        assert set(placement.nodes) == set(NODES)
        for key in ("x", b"y", 3):
            order = list(placement.walk(key))
            assert sorted(order) == NODES
            assert placement.get_nodes(key, 3) == order[:3]
            assert placement.get_nodes(key, 99) == order
            assert placement.get_node(key) == order[0]


def test_placement_without_nodes_returns_none() -> None:
    for placement in (HashRing(), Rendezvous(), Jump([]), BoundedLoads(HashRing())):
        assert placement.get_node("x") is None
        assert placement.get_nodes("x", 2) == []
