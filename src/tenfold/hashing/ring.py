"""Consistent hashing on a ring with virtual nodes.

Karger et al., Consistent Hashing and Random Trees (STOC 1997); the points of a node as in libketama.
docs/hashing.md defines every number, with test vectors, so that another language finds the same node.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from struct import pack
from threading import Lock
from typing import Any
from zlib import crc32

from tenfold.errors import SettingsError
from tenfold.hashing.circle import Circle
from tenfold.hashing.placement import (
    MASK,
    MULTIPLIER,
    Key,
    check_name,
    check_weight,
    encode_key,
    parse_nodes,
    ring_position,
    unknown_node_error,
)
from tenfold.hashing.preview import Preview, compare

VERSION = b"tenfold ring 1"
MAX_VIRTUAL_NODES = 10_000
_STATE = re.compile(r"(?P<epoch>[0-9]{1,18}):(?P<fingerprint>[0-9a-f]{16})")


class HashRing:
    """Places keys on nodes so that adding or removing a node moves that node's keys only.

    Lookups take no lock: they read one immutable circle, which a change replaces. A lookup in another thread
    sees the ring before a change or after it, never in between. Changes wait for each other.

    Args:
        nodes: Names, or a mapping from name to weight (1.0 is the weight of a name alone), in any order.
        virtual_nodes: Points on the ring for a weight of 1, at least 1, at most 10,000. More of them even out
            the shares and cost memory, 12 bytes each.

    Raises:
        SettingsError: a name is not printable text, a weight is not above 0, or the ring would have more than
            a million points.
    """

    def __init__(self, nodes: Iterable[str] | Mapping[str, float] = (), *, virtual_nodes: int = 150) -> None:
        if isinstance(virtual_nodes, bool) or not isinstance(virtual_nodes, int):
            raise SettingsError(f"virtual_nodes is {virtual_nodes!r}, which is not a whole number")
        if not 0 < virtual_nodes <= MAX_VIRTUAL_NODES:
            raise SettingsError(
                f"virtual_nodes is {virtual_nodes}; choose between 1 and {MAX_VIRTUAL_NODES:,}"
            )
        self._changes = Lock()
        self._circle = Circle.of(parse_nodes(nodes), virtual_nodes)

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node and its weight; a view that later changes of the ring do not alter."""
        return self._circle.weights

    @property
    def virtual_nodes(self) -> int:
        """Points on the ring for a weight of 1."""
        return self._circle.virtual_nodes

    def get_node(self, key: Key) -> str | None:
        """Return the node of a key, or None on an empty ring.

        Raises:
            SettingsError: the key is not text, bytes or a whole number.
        """
        circle = self._circle
        try:
            data = key.encode() if type(key) is str else encode_key(key)
        except UnicodeEncodeError:
            data = encode_key(key)  # raises with a sentence
        return circle.owners[bisect_left(circle.points, crc32(data) * MULTIPLIER & MASK)]

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """Return the first ``n`` distinct nodes from the key's position on; all where there are fewer."""
        return list(islice(self.walk(key), n))

    def get_many(self, keys: Iterable[Key]) -> list[str | None]:
        """Return the node of each key, in order, all from one state of the ring."""
        circle = self._circle
        return [circle.owners[bisect_left(circle.points, ring_position(key))] for key in keys]

    def walk(self, key: Key) -> Iterator[str]:
        """Yield every node once, in the order of their points from the key's position on."""
        return self._circle.walk(ring_position(key))

    def add(self, node: str, *, weight: float = 1.0) -> None:
        """Add a node, or change the weight of one: keys move to it, or away from it, and nowhere else.

        Copies the ring's two sequences; on a large ring that is a hundredth of building it anew.
        """
        check_name(node)
        check_weight(node, weight)
        with self._changes:
            if self._circle.weights.get(node) != weight:
                self._circle = self._circle.with_weight(node, float(weight))

    def remove(self, node: str) -> None:
        """Remove a node; each of its keys goes to the next node on the ring.

        Raises:
            SettingsError: there is no such node.
        """
        with self._changes:
            if node not in self._circle.weights:
                raise unknown_node_error(node, self._circle.weights)
            self._circle = self._circle.without(node)

    def copy(self) -> HashRing:
        """Return an independent ring with the same nodes, at no cost, to change and ``preview``."""
        ring = HashRing(virtual_nodes=self.virtual_nodes)
        ring._circle = self._circle
        return ring

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle nodes and virtual nodes; the points are computed again."""
        return partial(type(self), virtual_nodes=self.virtual_nodes), (dict(self.nodes),)

    def shares(self) -> dict[str, float]:
        """Return the exact share of all positions that each node owns: the lengths of its arcs."""
        return dict(self.preview(self).after)

    def preview(self, other: HashRing) -> Preview:
        """Return the exact effects of replacing this ring by ``other``; printed, a short table."""
        return compare(self._circle, other._circle)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ where names, weights, virtual nodes or the algorithm do.

        Computed at each call, about a microsecond a node.
        """
        circle = self._circle
        digest = sha256(VERSION + pack(">I", circle.virtual_nodes))
        for name in sorted(circle.weights):
            text = name.encode()
            digest.update(pack(">I", len(text)) + text + pack(">d", circle.weights[name]))
        return digest.hexdigest()[:16]

    def state(self, epoch: int) -> RingState:
        """Return epoch and fingerprint for other processes; the caller counts epochs, one a change."""
        return RingState(epoch, self.fingerprint)

    def __len__(self) -> int:
        return len(self._circle.weights)

    def __contains__(self, node: object) -> bool:
        return node in self._circle.weights

    def __repr__(self) -> str:
        return f"<HashRing of {len(self)} nodes, {self.fingerprint}>"


# ------------------------------------------------------------------ the same ring in every process


@dataclass(frozen=True, slots=True)
class RingState:
    """Epoch and fingerprint of one process's ring, in a form that fits a header or a heartbeat.

    The epoch is counted up with every change. ``str(state)`` is ``7:1f0c…``; ``RingState.parse`` reads it
    back.
    """

    epoch: int
    fingerprint: str

    def __post_init__(self) -> None:
        if not _STATE.fullmatch(str(self)):
            raise SettingsError(
                f"{str(self)[:60]!r} is no ring's state: a whole number from 0 on and 16 hexadecimal digits"
            )

    def __str__(self) -> str:
        return f"{self.epoch}:{self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> RingState:
        """Parse the state that another process sent.

        Raises:
            SettingsError: the text is not a state.
        """
        if not (match := _STATE.fullmatch(text)):
            raise SettingsError(f"{text[:60]!r} is no ring's state, which looks like 7:0123456789abcdef")
        return cls(int(match["epoch"]), match["fingerprint"])


def disagreement(mine: RingState, theirs: RingState) -> str | None:
    """Return why two processes must not work side by side, as a sentence; None where they may.

    Neighbouring epochs may: a rollout has both for a while, and each knows the other's ring as the one before
    or after its own. Between rings two epochs apart, keys may have moved twice.
    """
    if mine.epoch == theirs.epoch and mine.fingerprint != theirs.fingerprint:
        return (
            f"epoch {mine.epoch} has two rings, {mine.fingerprint} here and {theirs.fingerprint} there: "
            "give both the same nodes, weights and virtual nodes, or count the epoch up with the change"
        )
    if abs(mine.epoch - theirs.epoch) > 1:
        behind = "this one" if mine.epoch < theirs.epoch else "the other"
        return (
            f"epoch {mine.epoch} here and epoch {theirs.epoch} there are more than one change apart: "
            f"stop {behind} until it has the newer ring"
        )
    return None
