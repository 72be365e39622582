"""Jump consistent hashing: no memory, perfect balance, for nodes that are numbered.

Lamping and Veach, A Fast, Minimal Memory, Consistent Hash Algorithm (2014), arXiv:1406.2294.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType

from tenfold.errors import SettingsError
from tenfold.hashing.keys import Key, encoded, hash64
from tenfold.hashing.placement import weights

_MASK = (1 << 64) - 1


def jump(number: int, buckets: int) -> int:
    """The bucket, 0 to ``buckets`` - 1, of a hashed key, a number of 64 bits. Takes about ln(buckets) steps.

    Raises:
        SettingsError: there is no bucket, or more than 2³¹ of them.
    """
    if not 0 < buckets <= 1 << 31:
        raise SettingsError(f"jump needs between 1 and 2,147,483,648 buckets, not {buckets}")
    found, following = -1, 0
    number &= _MASK
    while following < buckets:
        found = following
        number = (number * 2862933555777941757 + 1) & _MASK
        following = int((found + 1) * ((1 << 31) / ((number >> 33) + 1)))
    return found


class Jump:
    """Places keys on nodes in a fixed order, evenly to the last per mille and without any table.

    The order counts: a node may come or go at the end of the list only, otherwise nearly every key moves.
    There are no weights. It does not change: make another one for another list.

    Args:
        nodes: Names, in an order that all processes share.

    Raises:
        SettingsError: a name that cannot be one, or a mapping with weights other than 1.
    """

    def __init__(self, nodes: Iterable[str]) -> None:
        found = weights(nodes)
        if any(weight != 1 for weight in found.values()):
            raise SettingsError("jump knows no weights; take HashRing or Rendezvous")
        self._nodes = MappingProxyType(found)
        self._names = tuple(found)

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node in order, each with a weight of 1."""
        return self._nodes

    def get_node(self, key: Key) -> str | None:
        """The node of a key, or None where there is no node."""
        return next(self.walk(key), None)

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """The first ``n`` distinct nodes of a key; all of them where there are fewer."""
        return list(islice(self.walk(key), n))

    def walk(self, key: Key) -> Iterator[str]:
        """Every node once: jump again with a hash of the last hash, past nodes that had their turn."""
        number, seen = hash64(encoded(key)), set[int]()
        while len(seen) < len(self._names):
            bucket = jump(number, len(self._names))
            if bucket not in seen:
                seen.add(bucket)
                yield self._names[bucket]
            number = hash64(number.to_bytes(8))
