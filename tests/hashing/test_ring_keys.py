"""Which keys are the same key, and where they lie."""

from __future__ import annotations

from uuid import UUID

import pytest

from tenfold.errors import SettingsError
from tenfold.hashing import BoundedLoads, HashRing, Jump, Key, Placement, Rendezvous
from tenfold.hashing.keys import MULTIPLIER, POSITIONS, encoded, hash64, position

NODES = [f"node-{number}" for number in range(7)]


@pytest.mark.parametrize(
    ("key", "place"),
    [("", 0), ("a", 0xFA5D3753), ("user:1", 0xDC78EDE2), ("Zürich", 0x0E6051DE), (42, 0xE0065608)],
)
def test_places_never_change(key: Key, place: int) -> None:
    assert position(key) == place


def test_the_longer_hash_never_changes() -> None:
    assert hash64(b"") == 0xE3B0C44298FC1C14  # FIPS 180-4's SHA-256 of nothing begins like this


@pytest.mark.parametrize(
    "alike", [(42, "42", b"42"), (-7, "-7"), ("é", "é".encode()), (b"x", bytearray(b"x"))]
)
@pytest.mark.parametrize(
    "placement", [HashRing(NODES), Rendezvous(NODES), Jump(NODES), BoundedLoads(HashRing(NODES))]
)
def test_an_id_is_one_key_however_it_is_written(placement: Placement, alike: tuple[Key, ...]) -> None:
    assert len({placement.get_node(key) for key in alike}) == 1
    assert len({encoded(key) for key in alike}) == 1


@pytest.mark.parametrize("key", [None, 1.0, True, ("a", 1), UUID(int=1)])
def test_other_things_are_no_keys(key: object) -> None:
    with pytest.raises(SettingsError, match=f"not {type(key).__name__}"):
        encoded(key)  # type: ignore[arg-type]


def test_each_place_belongs_to_one_crc() -> None:
    assert pow(MULTIPLIER, -1, POSITIONS) * MULTIPLIER % POSITIONS == 1  # odd, so it can be undone


def test_every_placement_offers_the_same() -> None:
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


def test_without_nodes_there_is_none() -> None:
    for placement in (HashRing(), Rendezvous(), Jump([]), BoundedLoads(HashRing())):
        assert placement.get_node("x") is None
        assert placement.get_nodes("x", 2) == []
