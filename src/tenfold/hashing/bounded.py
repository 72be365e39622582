"""Consistent hashing with bounded loads: no node holds much more than its share, however uneven the keys are.

Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded Loads (SODA 2018), arXiv:1608.01350.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from math import ceil, isfinite
from threading import Lock
from types import MappingProxyType
from typing import Any

from tenfold.errors import SettingsError
from tenfold.hashing.placement import Key, Placement


class BoundedLoads:
    """Assigns keys to the first node of their order that has room; the slot is held until it is released.

    With m slots held, one more may bring a node of weight w to at most ``ceil(factor · (m + 1) · w / W)``,
    where W is the weight of all nodes. A small factor keeps the loads even and sends more keys past their
    first node; 1.25 is what the paper and HAProxy's ``hash-balance-factor`` suggest. The loads are those of
    this process: several processes bound their own shares each. An acquisition looks at every node once;
    releases may leave a node above the bound, which then gets nothing until it is below.

    Args:
        placement: The order of nodes for a key: a ring, rendezvous or jump. It may change meanwhile;
            slots of a removed node count until they are released.
        factor: Upper bound of a node's load as a multiple of the average, above 1.

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle placement and factor; slots are this process's own."""
        return partial(type(self), factor=self._factor), (self._placement,)

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node and its weight."""
        return self._placement.nodes

    @property
    def loads(self) -> Mapping[str, int]:
        """Node → the slots held on it now."""
        with self._changes:
            return MappingProxyType(dict(self._loads))

    def acquire(self, key: Key) -> str | None:
        """Take a slot for a key and return its node, or None where there is no node."""
        with self._changes:
            node = self._choose(key)
            if node is not None:
                self._loads[node] += 1
                self._held += 1
            return node

    def release(self, node: str) -> None:
        """Give a slot back.

        Raises:
            SettingsError: no slot of the node is held.
        """
        with self._changes:
            if not self._loads[node]:
                raise SettingsError(f"node {node!r} holds no slot that could be released; release each once")
            self._loads[node] -= 1
            self._held -= 1
            if not self._loads[node]:
                del self._loads[node]

    @contextmanager
    def hold(self, key: Key) -> Iterator[str | None]:
        """Hold a slot for the length of a ``with`` block; yields its node, or None where there is no node."""
        node = self.acquire(key)
        try:
            yield node
        finally:
            if node is not None:
                self.release(node)

    def get_node(self, key: Key) -> str | None:
        """Return the node that the key would get now, without taking a slot."""
        with self._changes:
            return self._choose(key)

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """Return the first ``n`` nodes of the key's order, those with room before the full ones."""
        return list(islice(self.walk(key), n))

    def walk(self, key: Key) -> Iterator[str]:
        """Yield every node once, in the key's order, those with room before the full ones."""
        with self._changes:
            room = list(self._with_room(key))
        yield from room
        seen = set(room)
        yield from (node for node in self._placement.walk(key) if node not in seen)

    def _choose(self, key: Key) -> str | None:
        # Without room on any node only while another thread changes the placement.
        return next(self._with_room(key), None) or self._placement.get_node(key)

    def _with_room(self, key: Key) -> Iterator[str]:
        nodes = self._placement.nodes
        total = sum(nodes.values())
        for node in self._placement.walk(key):
            weight = nodes.get(node, 0.0)
            if weight and self._loads[node] < ceil(self._factor * (self._held + 1) * weight / total):
                yield node
