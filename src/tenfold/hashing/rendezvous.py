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
from typing import Any

from tenfold.hashing.placement import (
    Key,
    check_name,
    check_weight,
    encode_key,
    hash64,
    parse_nodes,
    unknown_node_error,
)


class Rendezvous:
    """Places keys in exact proportion to the weights, without stored points: a lookup visits every node.

    Changes move keys to or from the changed node only, at any weight. A lookup costs about a microsecond
    a node; for more than some tens of nodes take a ring. Lookups take no lock and see the nodes before a
    change or after it.

    Args:
        nodes: Names, or a mapping from name to weight, in any order.

    Raises:
        SettingsError: a name is not printable text, or a weight is not above 0.
    """

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = ()) -> None:
        self._changes = Lock()
        self._nodes = MappingProxyType(parse_nodes(nodes))

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node and its weight; a view that later changes leave alone."""
        return self._nodes

    def get_node(self, key: Key) -> str | None:
        """Return the node of a key, or None where there is no node."""
        return max(self._bids(key), default=(0.0, None))[1]

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """Return the ``n`` highest bidders, the highest first; all of them where there are fewer."""
        return list(islice(self.walk(key), n))

    def walk(self, key: Key) -> Iterator[str]:
        """Yield every node once, the highest bidder first."""
        return iter([node for _, node in sorted(self._bids(key), reverse=True)])

    def add(self, node: str, *, weight: float = 1.0) -> None:
        """Add a node, or change the weight of one."""
        with self._changes:
            self._nodes = MappingProxyType({**self._nodes, check_name(node): check_weight(node, weight)})

    def remove(self, node: str) -> None:
        """Remove a node.

        Raises:
            SettingsError: there is no such node.
        """
        with self._changes:
            if node not in self._nodes:
                raise unknown_node_error(node, self._nodes)
            self._nodes = MappingProxyType({name: w for name, w in self._nodes.items() if name != node})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the nodes."""
        return type(self), (dict(self._nodes),)

    def _bids(self, key: Key) -> Iterator[tuple[float, str]]:
        data = encode_key(key)
        for node, weight in self._nodes.items():
            yield bid(node, weight, data), node


def bid(node: str, weight: float, data: bytes) -> float:
    """Return -w / ln u, where u, between 0 and 1, comes from SHA-256 of the node, a zero byte and the key.

    u is (h + ½) / 2⁵² with the first 52 bits h of the hash, which a float holds exactly.
    """
    return -weight / log(((hash64(node.encode() + b"\0" + data) >> 12) + 0.5) / (1 << 52))
