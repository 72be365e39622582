"""Jump consistent hashing: no memory, perfect balance, for nodes that are numbered.

Lamping and Veach, A Fast, Minimal Memory, Consistent Hash Algorithm (2014), arXiv:1406.2294.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

from tenfold.errors import SettingsError
from tenfold.hashing.placement import Key, encode_key, hash64, parse_nodes

_MASK = (1 << 64) - 1


def jump(number: int, buckets: int) -> int:
    """Return the bucket, 0 to ``buckets`` - 1, of a hashed key of 64 bits, in about ln(buckets) steps.

    Raises:
        SettingsError: there is no bucket, or more than 2³¹ of them.
    """
    if not 0 < buckets <= 1 << 31:
        raise SettingsError(f"jump needs between 1 and 2,147,483,648 buckets, not {buckets}")
    bucket, following = -1, 0
    number &= _MASK
    while following < buckets:
        bucket = following
        number = (number * 2862933555777941757 + 1) & _MASK
        following = int((bucket + 1) * ((1 << 31) / ((number >> 33) + 1)))
    return bucket


class Jump:
    """Places keys on a fixed list of nodes, evenly to the last per mille and without any table.

    The order counts: a node may come or go at the end of the list only, otherwise nearly every key moves.
    There are no weights. It is immutable: make another one for another list.

    Args:
        nodes: Names, in an order that all processes share.

    Raises:
        SettingsError: a name is not printable text, or a mapping has weights other than 1.
    """

    def __init__(self, nodes: Iterable[str]) -> None:
        weights = parse_nodes(nodes)
        if any(weight != 1 for weight in weights.values()):
            raise SettingsError("jump knows no weights; take HashRing or Rendezvous")
        self._nodes = MappingProxyType(weights)
        self._names = tuple(weights)

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node in order, each with a weight of 1."""
        return self._nodes

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the nodes in their order."""
        return type(self), (self._names,)

    def get_node(self, key: Key) -> str | None:
        """Return the node of a key, or None where there is no node."""
        return next(self.walk(key), None)

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """Return the first ``n`` distinct nodes of a key; all of them where there are fewer."""
        return list(islice(self.walk(key), n))

    def walk(self, key: Key) -> Iterator[str]:
        """Yield every node once: jump again with a hash of the last hash, past nodes already yielded."""
        number, seen = hash64(encode_key(key)), set[int]()
        while len(seen) < len(self._names):
            bucket = jump(number, len(self._names))
            if bucket not in seen:
                seen.add(bucket)
                yield self._names[bucket]
            number = hash64(number.to_bytes(8))
