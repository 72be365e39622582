"""The sorted points of a ring and their owners, immutable: a change of the ring makes a new circle."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from hashlib import sha512
from struct import pack, unpack
from types import MappingProxyType

from tenfold.errors import SettingsError

POINTS_PER_DIGEST = 16  # each 32 of the 512 bits of a SHA-512
MAX_POINTS = 1_000_000


def node_points(name: str, start: int, stop: int) -> list[int]:
    """Return points number ``start`` to ``stop`` - 1 of a node, in order of their position on the ring.

    Point number i is the word i mod 16 (32 bits, the highest byte first) of SHA-512 over the number i div 16
    (four bytes, the highest first) and the name in UTF-8. A node's points depend on nothing but its name:
    with a higher weight it gets further ones, and those it had stay where they are.
    """
    text = name.encode()
    first = start // POINTS_PER_DIGEST
    words: list[int] = []
    for number in range(first, -(-stop // POINTS_PER_DIGEST)):
        words += unpack(">16I", sha512(pack(">I", number) + text).digest())
    return sorted(words[start - first * POINTS_PER_DIGEST : stop - first * POINTS_PER_DIGEST])


class Circle:
    """Sorted points and their owners; the node of a position is the owner of the first point at or after it.

    They are two parallel sequences, because a lookup is then one bisection in C; the points are an array,
    which is copied as a block where a list would count references. ``owners`` is one longer than ``points``:
    its last element is the first point's owner, so that a lookup past the last point needs no check for the
    end; on an empty circle it is None. Where points of two nodes coincide, the name that sorts first owns the
    point, in whatever order the nodes were added.
    """

    __slots__ = ("owners", "points", "virtual_nodes", "weights")

    def __init__(
        self,
        points: array[int],
        owners: list[str | None],
        weights: Mapping[str, float],
        virtual_nodes: int,
    ) -> None:
        self.points = points
        self.owners = owners
        self.weights = MappingProxyType(weights)
        self.virtual_nodes = virtual_nodes

    @classmethod
    def of(cls, weights: Mapping[str, float], virtual_nodes: int) -> Circle:
        """Build the circle of these nodes."""
        counts = {name: point_count(weights[name], virtual_nodes) for name in sorted(weights)}
        _check_point_count(sum(counts.values()))
        points = [point for name, count in counts.items() for point in node_points(name, 0, count)]
        names = [name for name, count in counts.items() for _ in range(count)]
        # A stable sort leaves coinciding points in the order of their names.
        order = sorted(range(len(points)), key=points.__getitem__)
        owners: list[str | None] = [names[i] for i in order]
        owners.append(owners[0] if owners else None)
        return cls(array("I", [points[i] for i in order]), owners, weights, virtual_nodes)

    def with_weight(self, name: str, weight: float) -> Circle:
        """Return this circle with a node added or reweighted; the points of the others are copied."""
        before = point_count(self.weights[name], self.virtual_nodes) if name in self.weights else 0
        after = point_count(weight, self.virtual_nodes)
        _check_point_count(len(self.points) + after - before)
        changed = {**self.weights, name: weight}
        if after < before:
            return self._remove_points(name, node_points(name, after, before), changed)
        return self._add_points(name, node_points(name, before, after), changed)

    def without(self, name: str) -> Circle:
        """Return this circle without a node."""
        count = point_count(self.weights[name], self.virtual_nodes)
        left = {other: weight for other, weight in self.weights.items() if other != name}
        return self._remove_points(name, node_points(name, 0, count), left)

    def _add_points(self, name: str, added: list[int], weights: Mapping[str, float]) -> Circle:
        points = array("I")
        owners: list[str | None] = []
        start = 0
        for point in added:
            stop = bisect_left(self.points, point, start)
            while stop < len(self.points) and self.points[stop] == point and str(self.owners[stop]) < name:
                stop += 1
            points += self.points[start:stop]
            owners += self.owners[start:stop]
            points.append(point)
            owners.append(name)
            start = stop
        return self._with_tail(points, owners, start, weights)

    def _remove_points(self, name: str, removed: list[int], weights: Mapping[str, float]) -> Circle:
        points = array("I")
        owners: list[str | None] = []
        start = 0
        for point in removed:
            stop = bisect_left(self.points, point, start)
            while self.owners[stop] != name:
                stop += 1
            points += self.points[start:stop]
            owners += self.owners[start:stop]
            start = stop + 1
        return self._with_tail(points, owners, start, weights)

    def _with_tail(
        self, points: array[int], owners: list[str | None], start: int, weights: Mapping[str, float]
    ) -> Circle:
        """Return the circle of ``points`` and everything of this one from ``start`` on."""
        points += self.points[start:]
        owners += self.owners[start : len(self.points)]
        owners.append(owners[0] if owners else None)
        return Circle(points, owners, weights, self.virtual_nodes)

    def walk(self, position: int) -> Iterator[str]:
        """Yield every node once, in the order of their points from ``position`` on."""
        seen = set()
        start = bisect_left(self.points, position)
        for i in range(start, start + len(self.points)):
            name = self.owners[i % len(self.points)]
            if name is not None and name not in seen:
                seen.add(name)
                yield name
                if len(seen) == len(self.weights):
                    return


def point_count(weight: float, virtual_nodes: int) -> int:
    """Return how many points a node has: ``virtual_nodes`` × weight, rounded half to even, at least one."""
    return max(1, round(virtual_nodes * weight))


def _check_point_count(points: int) -> None:
    if points > MAX_POINTS:
        raise SettingsError(
            f"a ring holds at most {MAX_POINTS:,} points; lower virtual_nodes or all of the weights"
        )
