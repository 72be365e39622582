"""Consistent hashing on a ring with virtual nodes.

Karger et al., Consistent Hashing and Random Trees (STOC 1997); the points of a node as in libketama.
docs/hashing.md defines every number, with test vectors, so that another language finds the same node.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from struct import pack
from threading import Lock
from zlib import crc32

from tenfold.errors import SettingsError
from tenfold.hashing.circle import Circle
from tenfold.hashing.keys import MASK, MULTIPLIER, Key, encoded, position
from tenfold.hashing.placement import missing, named, weighed, weights
from tenfold.hashing.preview import Preview, compared
from tenfold.hashing.state import RingState

VERSION = b"tenfold ring 1"
MOST_VIRTUAL_NODES = 10_000
# Below this many keys a loop is as fast as numpy, and does not load it.
A_BATCH = 512


class HashRing:
    """Places keys on nodes so that a node that comes or goes moves its own keys only.

    Lookups take no lock: they read one circle, which never changes, and a change puts a new one in its place.
    A lookup in another thread sees the ring before a change or after it, never in between. Changes wait for
    each other.

    Args:
        nodes: Names, or a mapping from name to weight (1.0 is the weight of a name alone). Their order is of
            no importance.
        virtual_nodes: Points on the ring for a weight of 1, at least 1, at most 10,000. More of them even out
            the shares and cost memory, 12 bytes each.

    Raises:
        SettingsError: a name or weight that cannot be one, or more than a million points.
    """

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = (), *, virtual_nodes: int = 150) -> None:
        if isinstance(virtual_nodes, bool) or not isinstance(virtual_nodes, int):
            raise SettingsError(f"virtual_nodes is {virtual_nodes!r}, which is not a whole number")
        if not 0 < virtual_nodes <= MOST_VIRTUAL_NODES:
            raise SettingsError(
                f"virtual_nodes is {virtual_nodes}; between 1 and {MOST_VIRTUAL_NODES:,} can be had"
            )
        self._changes = Lock()
        self._circle = Circle.of(weights(nodes), virtual_nodes)

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node and its weight; a view that later changes of the ring leave alone."""
        return self._circle.weights

    @property
    def virtual_nodes(self) -> int:
        """Points on the ring for a weight of 1."""
        return self._circle.virtual_nodes

    def get_node(self, key: Key) -> str | None:
        """The node of a key, or None on an empty ring.

        Raises:
            SettingsError: the key is neither text, bytes nor a whole number.
        """
        circle = self._circle
        data = key.encode() if type(key) is str else encoded(key)
        return circle.owners[bisect_left(circle.points, crc32(data) * MULTIPLIER & MASK)]

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """The first ``n`` distinct nodes from the key's place on; all of them where there are fewer."""
        return list(islice(self.walk(key), n))

    def get_many(self, keys: Iterable[Key]) -> list[str | None]:
        """The node of each key, in order: what ``get_node`` says, faster where numpy is installed.

        Fastest for a numpy array of whole numbers; lists of one type come next. All keys see the same ring.
        """
        circle = self._circle
        many = keys if isinstance(keys, Collection) else list(keys)
        if len(many) >= A_BATCH and circle.points:
            try:
                from tenfold.hashing.numpy import owners
            except ImportError:
                pass
            else:
                return owners(circle, many)
        return [circle.owners[bisect_left(circle.points, position(key))] for key in many]

    def walk(self, key: Key) -> Iterator[str]:
        """Every node once, in the order in which the ring meets them from the key's place on."""
        return self._circle.walk(position(key))

    def add(self, node: str, *, weight: float = 1.0) -> None:
        """Add a node, or change the weight of one: keys move to it, or away from it, and nowhere else.

        Copies the ring's two lists, which is less than a hundredth of building it anew.
        """
        named(node)
        weighed(node, weight)
        with self._changes:
            if self._circle.weights.get(node) != weight:
                self._circle = self._circle.with_weight(node, float(weight))

    def remove(self, node: str) -> None:
        """Take a node out; its keys go to the others, each to the next one on the ring.

        Raises:
            SettingsError: there is no such node.
        """
        with self._changes:
            if node not in self._circle.weights:
                raise missing(node, self._circle.weights)
            self._circle = self._circle.without(node)

    def copy(self) -> HashRing:
        """A ring of its own with the same nodes, at no cost: to change, and to ask ``preview`` about."""
        ring = HashRing(virtual_nodes=self.virtual_nodes)
        ring._circle = self._circle
        return ring

    def shares(self) -> dict[str, float]:
        """The exact share of all positions that each node owns: the lengths of its arcs."""
        return dict(self.preview(self).after)

    def preview(self, other: HashRing) -> Preview:
        """What replacing this ring by another would do, exactly and beforehand; printed, a short table."""
        return compared(self._circle, other._circle)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ where names, weights, virtual nodes or the algorithm do.

        Worked out at each call, about a microsecond a node.
        """
        circle = self._circle
        digest = sha256(VERSION + pack(">I", circle.virtual_nodes))
        for name in sorted(circle.weights):
            text = name.encode()
            digest.update(pack(">I", len(text)) + text + pack(">d", circle.weights[name]))
        return digest.hexdigest()[:16]

    def state(self, epoch: int) -> RingState:
        """This ring as others should see it; the epoch is counted by whoever hands out rings."""
        return RingState(epoch, self.fingerprint)

    def __len__(self) -> int:
        return len(self._circle.weights)

    def __contains__(self, node: object) -> bool:
        return node in self._circle.weights

    def __repr__(self) -> str:
        return f"<HashRing of {len(self)} nodes, {self.fingerprint}>"
