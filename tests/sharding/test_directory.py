"""The directory as a value: where keys are, how it changes, what evens it out."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import SettingsError
from tenfold.sharding.directory import Bucket, Directory, Plan, plan_shards
from tenfold.sharding.keys import BUCKETS, bucket_of, encode_key

NAMES = st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=1, max_size=9, unique=True)


def directory(*names: str) -> Directory:
    return Directory.create(names or ("a", "b", "c", "d"), ("int",))


@given(names=NAMES)
def test_first_shards_have_equal_shares(names: list[str]) -> None:
    counts = Counter(bucket.shard for bucket in directory(*names).buckets.values())
    assert set(counts) == set(names)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_key_is_placed_by_its_bucket() -> None:
    place = directory().place(42)
    assert place == (bucket_of("i2:42"), directory().buckets[place.bucket].shard, 1, "i2:42")


def test_tenant_with_a_bucket_of_its_own() -> None:
    former = directory()
    home = former.place(42)
    other = next(name for name in former.shard_epochs if name != home.shard)
    changed = former.assign_tenant(42, other)
    assert changed.place(42) == (home.bucket + BUCKETS, other, 1, "i2:42")
    assert changed.buckets[home.bucket] == Bucket(home.shard, 2)  # who knows only epoch 1 is refused
    assert changed.shard_epochs == {name: 1 + (name in (other, home.shard)) for name in former.shard_epochs}
    assert changed.version == former.version + 1
    neighbour = next(
        key for key in range(10**6) if key != 42 and bucket_of(encode_key(key, ("int",))) == home.bucket
    )
    assert changed.place(neighbour).bucket == home.bucket
    with pytest.raises(SettingsError, match="this tenant has a bucket of its own"):
        changed.assign_tenant(42, other)
    with pytest.raises(SettingsError, match="another tenant of the same hash"):
        changed.assign_tenant(neighbour, other)
    with pytest.raises(SettingsError, match="no shard z in the directory: it has a, b, c, d"):
        former.assign_tenant(42, "z")


@given(bucket=st.integers(0, BUCKETS - 1), target=st.sampled_from("abcd"))
def test_moved_bucket_has_a_later_epoch_and_so_have_both_shards(bucket: int, target: str) -> None:
    former = directory()
    changed = former.move(bucket, target)
    assert changed.buckets[bucket] == Bucket(target, 2)
    source = former.buckets[bucket].shard
    assert changed.shard_epochs == {name: 1 + (name in (source, target)) for name in "abcd"}


def test_more_shards_have_no_bucket_yet() -> None:
    more = directory().add_shards(["e"])
    assert more.buckets_of("e") == {} and list(more.shard_epochs) == ["a", "b", "c", "d", "e"]
    with pytest.raises(SettingsError, match="has a shard e already"):
        more.add_shards(["e"])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Directory.create([], ("int",)), "one or more shards"),
        (lambda: Directory.create(["a", "a"], ("int",)), "different names"),
        (lambda: Directory(1, ("int",), {"a": 1}, {}), "lacks 4096 buckets"),
        (
            lambda: Directory(1, ("int",), {"a": 1}, {number: Bucket("b", 1) for number in range(BUCKETS)}),
            "a shard that it does not know: b",
        ),
        (lambda: directory().place_bucket(5000), "no bucket 5000 in this directory"),
    ],
)
def test_incomplete_directory_is_refused(wrong: object, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        wrong()  # type: ignore[operator]


# ------------------------------------------------------------------ planning


@given(names=NAMES, new=st.integers(1, 4))
def test_plan_evens_out_with_few_moves(names: list[str], new: int) -> None:
    more = directory(*names).add_shards([f"new{number}" for number in range(new)])
    plan = plan_shards(more)
    total = len(names) + new
    assert sum(plan.after.values()) == sum(plan.before.values()) == BUCKETS
    assert max(plan.after.values()) - min(plan.after.values()) <= 2
    assert len(plan.moves) <= BUCKETS * new / total + total
    assert sum(not move.target.startswith("new") for move in plan.moves) <= total


@given(weights=st.dictionaries(st.integers(0, BUCKETS - 1), st.floats(0, 1e6), max_size=60))
def test_plan_never_makes_it_worse(weights: dict[int, float]) -> None:
    plan = plan_shards(directory("a", "b").add_shards(["c"]), weights)
    assert Plan.peak(plan.after) <= Plan.peak(plan.before) + 1e-9
    assert sum(plan.after.values()) == pytest.approx(sum(plan.before.values()))
    assert len({move.bucket for move in plan.moves}) == len(plan.moves)


def test_heavy_bucket_is_moved_first_and_tenants_stay() -> None:
    found = directory("a", "b").assign_tenant(42, "a").add_shards(["c"])
    heavy = next(
        number for number, bucket in found.buckets.items() if bucket.shard == "a" and number < BUCKETS
    )
    own = found.place(42).bucket
    plan = plan_shards(found, {heavy: 10.0, own: 12.0, BUCKETS - 1: 5.0})
    assert [tuple(move) for move in plan.moves] == [(heavy, "a", "c")] or plan.moves == ()
    assert all(move.bucket != own for move in plan.moves)
