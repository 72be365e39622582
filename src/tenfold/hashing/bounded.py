"""Consistent hashing with bounded loads: no node holds much more than its share, however uneven the keys are.

Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded Loads (SODA 2018), arXiv:1608.01350.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from math import ceil, isfinite
from threading import Lock
from types import MappingProxyType

from tenfold.errors import SettingsError
from tenfold.hashing.keys import Key
from tenfold.hashing.placement import Placement


class BoundedLoads:
    """Gives out places: a key goes to the first node of its order that has room, and holds it until released.

    With m places held, one more may bring a node of weight w to at most ``ceil(factor · (m + 1) · w / W)``,
    where W is the weight of all nodes. A small factor keeps the loads even and sends more keys past their
    first node; 1.25 is what the paper and HAProxy's ``hash-balance-factor`` suggest. The loads are those of
    this process: several processes bound their own shares each. An acquisition looks at every node once;
    releases may leave a node above the bound, which then gets nothing until it is below.

    Args:
        placement: What orders the nodes for a key: a ring, rendezvous or jump. It may change meanwhile;
            places on a node that has left count until they are released.
        factor: How much of the average a node may hold, above 1.

    Raises:
        SettingsError: the factor is not above 1.
    """

    def __init__(self, placement: Placement, *, factor: float = 1.25) -> None:
        if not (isfinite(factor) and factor > 1):
            raise SettingsError(f"factor is {factor}; above 1 there is always a node with room")
        self._placement = placement
        self._factor = factor
        self._loads: Counter[str] = Counter()
        self._held = 0
        self._changes = Lock()

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node and its weight."""
        return self._placement.nodes

    @property
    def loads(self) -> Mapping[str, int]:
        """Node → the places that it has given out, as of now."""
        with self._changes:
            return MappingProxyType(dict(self._loads))

    def acquire(self, key: Key) -> str | None:
        """Take a place for a key and say on which node, or None where there is no node."""
        with self._changes:
            node = self._choice(key)
            if node is not None:
                self._loads[node] += 1
                self._held += 1
            return node

    def release(self, node: str) -> None:
        """Give a place back.

        Raises:
            SettingsError: the node has given out no place.
        """
        with self._changes:
            if not self._loads[node]:
                raise SettingsError(f"node {node!r} holds no place that could be released; release each once")
            self._loads[node] -= 1
            self._held -= 1
            if not self._loads[node]:
                del self._loads[node]

    @contextmanager
    def held(self, key: Key) -> Iterator[str | None]:
        """A place for the length of a ``with`` block."""
        node = self.acquire(key)
        try:
            yield node
        finally:
            if node is not None:
                self.release(node)

    def get_node(self, key: Key) -> str | None:
        """Where the key would go now; takes no place."""
        with self._changes:
            return self._choice(key)

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """The first ``n`` nodes of the key's order, those with room before the full ones."""
        return list(islice(self.walk(key), n))

    def walk(self, key: Key) -> Iterator[str]:
        """Every node once: those with room in the key's order, then the full ones in the key's order."""
        with self._changes:
            room = list(self._with_room(key))
        yield from room
        seen = set(room)
        yield from (node for node in self._placement.walk(key) if node not in seen)

    def _choice(self, key: Key) -> str | None:
        # That no node has room happens only while the placement changes under our hands.
        return next(self._with_room(key), None) or self._placement.get_node(key)

    def _with_room(self, key: Key) -> Iterator[str]:
        nodes = self._placement.nodes
        whole = sum(nodes.values())
        for node in self._placement.walk(key):
            weight = nodes.get(node, 0.0)
            if weight and self._loads[node] < ceil(self._factor * (self._held + 1) * weight / whole):
                yield node
