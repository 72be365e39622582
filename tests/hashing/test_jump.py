"""Jump hashing: the published values, even shares, and moves to the new node only."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import SettingsError
from tenfold.hashing import Jump, jump

NODES = [f"node-{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("number", "buckets", "bucket"),
    # From ClickHouse's jumpConsistentHash and the Rust and Go packages.
    [(1, 1, 0), (42, 57, 43), (256, 1024, 520), (0xDEAD10CC, 1, 0), (0xDEAD10CC, 666, 361)],
)
def test_jump_agrees_with_other_implementations(number: int, buckets: int, bucket: int) -> None:
    assert jump(number, buckets) == bucket


def test_documented_vectors_are_stable() -> None:
    placement = Jump(NODES[:5])
    found = [placement.get_node(key) for key in ("", "user:1", "user:2", 42, "Zürich", -1)]
    assert found == [f"node-{number}" for number in (2, 0, 0, 0, 1, 4)]


@pytest.mark.guarantee("a change of one node or weight moves no key between others")
@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(1, 2_000))
def test_new_bucket_moves_keys_to_itself_only(number: int, buckets: int) -> None:
    assert jump(number, buckets + 1) in (jump(number, buckets), buckets)


@pytest.mark.control("a change of one node or weight moves no key between others")
def test_the_control_modulo_moves_keys_among_old_buckets() -> None:
    assert any(number % 11 not in (number % 10, 10) for number in range(100))


def test_shares_are_even() -> None:
    counts = [0] * 10
    for number in range(20_000):
        counts[jump(number * 0x9E3779B97F4A7C15, 10)] += 1
    assert max(counts) / 2_000 < 1.08


def test_removing_the_last_node_moves_its_keys_only() -> None:
    longer, shorter = Jump(NODES), Jump(NODES[:-1])
    keys = range(500)
    assert all(longer.get_node(k) in (shorter.get_node(k), NODES[-1]) for k in keys)
    other = Jump(NODES[1:])  # the control: from the front, keys move among others
    assert any(longer.get_node(k) not in (other.get_node(k), NODES[0]) for k in keys)


@pytest.mark.parametrize("buckets", [0, -1, 2**31 + 1])
def test_invalid_bucket_counts_are_refused(buckets: int) -> None:
    with pytest.raises(SettingsError, match="between 1 and"):
        jump(1, buckets)


def test_weights_are_refused() -> None:
    with pytest.raises(SettingsError, match="knows no weights"):
        Jump({"a": 2})
