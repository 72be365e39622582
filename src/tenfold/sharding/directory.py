"""The directory: which shard has which bucket, in which epoch. A value; every change makes a new one.

A bucket's epoch grows when it changes its shard, and when a tenant leaves it for a bucket of its own; so a
process that knows an older one is refused by the shard. A shard's epoch grows with every change of its set
of buckets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from tenfold.errors import SettingsError
from tenfold.sharding.keys import BUCKETS, Key, KeyType, bucket_of, encode_key

__all__ = ["Bucket", "Directory", "Move", "Placement", "Plan", "plan_shards"]


class Bucket(NamedTuple):
    """Where a bucket is. ``tenant`` is the encoded key of the only one in it; "" in those that are hashed."""

    shard: str
    epoch: int
    tenant: str = ""


class Placement(NamedTuple):
    """Where the rows of a key are: what a session is bound to."""

    bucket: int
    shard: str
    epoch: int
    key: str


@dataclass(frozen=True)
class Directory:
    """All buckets and shards in one version.

    Attributes:
        version: grows with every change.
        key_types: of the parts of a shard key.
        shard_epochs: every shard and its epoch, in the order of their creation.
        buckets: 0 to 4095, and 4096 more than the hash for each tenant with a bucket of its own.
        used_shards: those that have a bucket.
    """

    version: int
    key_types: tuple[KeyType, ...]
    shard_epochs: Mapping[str, int]
    buckets: Mapping[int, Bucket]
    used_shards: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _tenants: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a directory in which a key would have no place."""
        if missing := set(range(BUCKETS)) - self.buckets.keys():
            raise SettingsError(f"the directory lacks {len(missing)} buckets, {min(missing)} for one")
        used = {bucket.shard for bucket in self.buckets.values()}
        if unknown := used - self.shard_epochs.keys():
            raise SettingsError(f"the directory names a shard that it does not know: {min(unknown)}")
        tenants = {bucket.tenant: number for number, bucket in self.buckets.items() if number >= BUCKETS}
        object.__setattr__(self, "_tenants", tenants)
        object.__setattr__(self, "used_shards", tuple(name for name in self.shard_epochs if name in used))

    @classmethod
    def create(cls, shards: Sequence[str], key_types: tuple[KeyType, ...]) -> Self:
        """A first directory: each shard has an equal range of the buckets."""
        if not shards or len(set(shards)) != len(shards):
            raise SettingsError("a directory begins with one or more shards of different names")
        count = len(shards)
        buckets = {number: Bucket(shards[number * count // BUCKETS], 1) for number in range(BUCKETS)}
        return cls(1, key_types, dict.fromkeys(shards, 1), buckets)

    def place(self, key: Key) -> Placement:
        """Return where the rows of ``key`` are.

        Raises:
            SettingsError: it is of another type than the directory declares.
        """
        encoded = encode_key(key, self.key_types)
        number = self._tenants.get(encoded) if self._tenants else None
        if number is None:
            number = bucket_of(encoded)
        shard, epoch, _ = self.buckets[number]
        return Placement(number, shard, epoch, encoded)

    def place_bucket(self, number: int) -> Placement:
        """Return where a bucket is, for rows that are found by their id."""
        if (bucket := self.buckets.get(number)) is None:
            raise SettingsError(f"no bucket {number} in this directory: the identifier belongs to another")
        return Placement(number, bucket.shard, bucket.epoch, bucket.tenant)

    def buckets_of(self, shard: str) -> dict[int, int]:
        """The buckets of a shard and their epochs."""
        return {number: bucket.epoch for number, bucket in self.buckets.items() if bucket.shard == shard}

    # ------------------------------------------------------------------ changes

    def add_shards(self, names: Sequence[str]) -> Directory:
        """A directory with more shards, which have no bucket yet."""
        if known := self.shard_epochs.keys() & set(names):
            raise SettingsError(f"the directory has a shard {min(known)} already: choose another name")
        epochs = {**self.shard_epochs, **dict.fromkeys(names, 1)}
        return replace(self, version=self.version + 1, shard_epochs=epochs)

    def assign_tenant(self, key: Key, shard: str) -> Directory:
        """A directory in which ``key`` has a bucket of its own, on ``shard``.

        One tenant of each hashed bucket may: so the numbers of such buckets, and identifiers made in them,
        are unique without a register.

        Raises:
            SettingsError: it has one, another tenant of the same hash has one, or the shard is unknown.
        """
        encoded = encode_key(key, self.key_types)
        hashed = bucket_of(encoded)
        own = hashed + BUCKETS
        if (former := self.buckets.get(own)) is not None:
            whose = "this tenant" if former.tenant == encoded else "another tenant of the same hash"
            raise SettingsError(f"{whose} has a bucket of its own, {own} on shard {former.shard}")
        home = self.buckets[hashed]
        buckets = {
            **self.buckets,
            hashed: home._replace(epoch=home.epoch + 1),
            own: Bucket(shard, 1, encoded),
        }
        return self._change(buckets, home.shard, shard)

    def move(self, number: int, shard: str) -> Directory:
        """A directory in which a bucket is on another shard, in its next epoch."""
        former = self.buckets[number]
        buckets = {**self.buckets, number: former._replace(shard=shard, epoch=former.epoch + 1)}
        return self._change(buckets, former.shard, shard)

    def _change(self, buckets: Mapping[int, Bucket], *shards: str) -> Directory:
        if unknown := set(shards) - self.shard_epochs.keys():
            known = ", ".join(self.shard_epochs)
            raise SettingsError(f"no shard {min(unknown)} in the directory: it has {known}")
        epochs = {name: epoch + (name in shards) for name, epoch in self.shard_epochs.items()}
        return replace(self, version=self.version + 1, shard_epochs=epochs, buckets=buckets)


# ------------------------------------------------------------------ planning


class Move(NamedTuple):
    """A bucket that changes its shard."""

    bucket: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Moves, and the weight of each shard before and after them; the weight of a shard without any is 0."""

    moves: tuple[Move, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]

    @staticmethod
    def peak(weights: Mapping[str, float]) -> float:
        """Peak to average: the heaviest shard's weight, as a multiple of the mean."""
        total = sum(weights.values())
        return max(weights.values()) * len(weights) / total if total else 0.0


def plan_shards(directory: Directory, weights: Mapping[int, float] | None = None) -> Plan:
    """Plan the moves that even out the shards: few, the heaviest first, each to the lightest shard.

    A move is made only if it lowers the heavier of the two. Tenants with a bucket of their own stay.

    Args:
        directory: with the new shards in it.
        weights: of each bucket, say its bytes or its load; all weigh the same without them.
    """
    weight = {number: (weights or {}).get(number, 0.0) if weights else 1.0 for number in directory.buckets}
    load = dict.fromkeys(directory.shard_epochs, 0.0)
    held: dict[str, list[int]] = {name: [] for name in directory.shard_epochs}
    for number, bucket in directory.buckets.items():
        load[bucket.shard] += weight[number]
        if number < BUCKETS:
            held[bucket.shard].append(number)
    before = dict(load)
    mean = sum(load.values()) / len(load)
    moves: list[Move] = []
    for source in sorted(load, key=lambda name: -load[name]):
        for number in sorted(held[source], key=lambda number: (-weight[number], -number)):
            target = min(load, key=lambda name: (load[name], name))
            moved = weight[number]
            if load[source] <= mean or not 0 < moved <= (load[source] - load[target]) / 2:
                continue
            load[source] -= moved
            load[target] += moved
            moves.append(Move(number, source, target))
    return Plan(tuple(moves), before, dict(load))
