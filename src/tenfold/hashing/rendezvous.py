"""Rendezvous hashing, also called highest random weight: every node bids for the key, the highest bid wins.

Thaler and Ravishankar, Using Name-Based Mappings to Increase Hit Rates (IEEE/ACM Transactions on Networking
6, 1998); the bid with weights, -w / ln u, as in Schindelhauer and Schomaker, Weighted Distributed Hash Tables
(SPAA 2005).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from math import log
from threading import Lock
from types import MappingProxyType

from tenfold.hashing.keys import Key, encoded, hash64
from tenfold.hashing.placement import missing, named, weighed, weights


class Rendezvous:
    """Places keys in exact proportion to the weights, without points to keep: a lookup asks every node.

    Changes move keys to or from the changed node only, at any weight. A lookup costs about a microsecond
    a node; for more than some tens of nodes take a ring. Lookups take no lock and see the nodes before a
    change or after it.

    Args:
        nodes: Names, or a mapping from name to weight. Their order is of no importance.

    Raises:
        SettingsError: a name or weight that cannot be one.
    """

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = ()) -> None:
        self._changes = Lock()
        self._nodes = MappingProxyType(weights(nodes))

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node and its weight; a view that later changes leave alone."""
        return self._nodes

    def get_node(self, key: Key) -> str | None:
        """The node of a key, or None where there is no node."""
        return max(self._bids(key), default=(0.0, None))[1]

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """The ``n`` highest bidders, the highest first; all of them where there are fewer."""
        return list(islice(self.walk(key), n))

    def walk(self, key: Key) -> Iterator[str]:
        """Every node once, the highest bidder first."""
        return iter([node for _, node in sorted(self._bids(key), reverse=True)])

    def add(self, node: str, *, weight: float = 1.0) -> None:
        """Add a node, or change the weight of one."""
        with self._changes:
            self._nodes = MappingProxyType({**self._nodes, named(node): weighed(node, weight)})

    def remove(self, node: str) -> None:
        """Take a node out.

        Raises:
            SettingsError: there is no such node.
        """
        with self._changes:
            if node not in self._nodes:
                raise missing(node, self._nodes)
            self._nodes = MappingProxyType({name: w for name, w in self._nodes.items() if name != node})

    def _bids(self, key: Key) -> Iterator[tuple[float, str]]:
        data = encoded(key)
        for node, weight in self._nodes.items():
            yield bid(node, weight, data), node


def bid(node: str, weight: float, data: bytes) -> float:
    """-w / ln u, where u, between 0 and 1, comes from SHA-256 of the node, a zero byte and the key.

    u is (h + ½) / 2⁵² with the first 52 bits h of the hash, which a float holds exactly.
    """
    return -weight / log(((hash64(node.encode() + b"\0" + data) >> 12) + 0.5) / (1 << 52))
