"""Many keys at once: the answers of one at a time, with numpy and without."""

from __future__ import annotations

import subprocess
import sys
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.hashing import HashRing
from tenfold.hashing import numpy as vectors
from tenfold.hashing.keys import Key, encoded

SMALL = HashRing(["a", "b", "c"], virtual_nodes=7)
LARGE = HashRing([f"node-{number}" for number in range(300)])
NUMBERS = st.one_of(
    st.integers(0, 2**63 - 1), st.sampled_from([10**n + d for n in range(19) for d in (-1, 0, 1)])
)
MIXED = st.one_of(st.text(), st.binary(), st.integers())


def one_by_one(ring: HashRing, keys: list[Key]) -> list[str | None]:
    return [ring.get_node(key) for key in keys]


@pytest.fixture(autouse=True)
def short_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.hashing.ring.A_BATCH", 1)
    monkeypatch.setattr(vectors, "BLOCK", 16)


@settings(deadline=None)
@given(st.one_of(st.lists(st.text()), st.lists(st.binary()), st.lists(st.integers()), st.lists(MIXED)))
def test_a_list_is_placed_as_its_keys_are(keys: list[Key]) -> None:
    for ring in (SMALL, LARGE):
        assert ring.get_many(keys) == one_by_one(ring, keys)
        assert ring.get_many(iter(keys)) == one_by_one(ring, keys)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=1))
def test_an_array_of_numbers_is_placed_as_its_numbers_are(numbers: list[int]) -> None:
    assert vectors.decimal_crcs(np.array(numbers)).tolist() == [crc32(encoded(n)) for n in numbers]
    assert SMALL.get_many(np.array(numbers)) == one_by_one(SMALL, list(numbers))


def test_the_control_tables_that_ignore_the_length_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "leading", vectors.padded)
    with pytest.raises(AssertionError):
        test_an_array_of_numbers_is_placed_as_its_numbers_are()


@pytest.mark.parametrize(
    "array",
    [
        np.array([0, 1, 9_999, 10_000, 99_999_999, 100_000_000, 2**63 - 1]),
        np.array([-1, 5, -(2**63)]),
        np.array([2**64 - 1, 0], np.uint64),
        np.array([7, 255], np.uint8),
        np.array(["a", "user:1", "é"]),
        np.array([b"a", b"user:1"]),
        np.array(["a", b"b", 3], object),
        np.array([], np.int64),
    ],
    ids=lambda array: str(array.dtype),
)
def test_any_array_is_placed_as_its_elements_are(array: np.ndarray) -> None:  # type: ignore[type-arg]
    assert SMALL.get_many(array) == one_by_one(SMALL, array.tolist())
    assert SMALL.get_many(array) == one_by_one(SMALL, list(array))


@pytest.mark.parametrize("ring", [SMALL, LARGE], ids=["small", "large"])
def test_the_table_and_the_bisection_agree(ring: HashRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough keys for the table, and keys on, before and after every point."""
    found = vectors.Vectors(ring._circle)
    near = [place for point in ring._circle.points for place in (point - 1, point, point + 1)]
    positions = np.array([0, 2**32 - 1, *near], np.uint32)
    assert found.owners(positions, 1) == found.owners(positions, 1 << 20)
    assert found._table is not None


def test_a_ring_that_changes_is_seen_by_the_next_batch() -> None:
    ring = HashRing(["a", "b"])
    keys: list[Key] = [f"user:{number}" for number in range(200)]
    ring.get_many(keys)
    ring.add("c")
    assert ring.get_many(keys) == one_by_one(ring, keys)
    assert "c" in ring.get_many(keys)


PLACE = """
import hashlib, sys
if "{without}":
    sys.modules["numpy"] = None
from tenfold.hashing import HashRing
ring = HashRing({{"a": 1, "b": 2.5, "c": 1}})
kinds = [[f"user:{{n}}" for n in range(2000)], list(range(2000)), [b"%d" % n for n in range(2000)]]
kinds.append(range(-9, 2000))
print([ring.get_many(keys) for keys in kinds], ring.fingerprint)
print("numpy" in sys.modules and sys.modules["numpy"] is not None)
"""


def test_results_do_not_depend_on_whether_numpy_is_there() -> None:
    answers = [
        subprocess.run(
            [sys.executable, "-c", PLACE.format(without=without)], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for without in ("", "without")
    ]
    assert answers[0][0] == answers[1][0]
    assert [answer[1] for answer in answers] == ["True", "False"]  # and one of them had it
