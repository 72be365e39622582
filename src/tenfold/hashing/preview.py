"""Preview of replacing one ring by another: exact, from the lengths of arcs, before anything moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tenfold.hashing.circle import Circle
from tenfold.hashing.placement import POSITIONS

MAX_ROWS = 10


@dataclass(frozen=True, slots=True)
class Preview:
    """Shares of all positions, 0 to 1; with many different keys, shares of the keys.

    A share of the keys is a share of the load only where no key is much busier than the others.
    """

    before: Mapping[str, float]
    """Node → its share on the current ring."""
    after: Mapping[str, float]
    """Node → its share on the new ring."""
    peak_before: float
    """Peak to average: the largest ratio of a node's share to that of its weight; 0 on an empty ring."""
    peak_after: float
    """The same on the new ring."""
    moved: float
    """The share of all keys that change their node."""
    moves: Mapping[tuple[str, str], float]
    """(from, to) → the share of all keys that makes this move, the largest first."""

    def __str__(self) -> str:
        return "\n".join([*self._shares(), self._peak(), *self._moves()])

    def _shares(self) -> list[str]:
        nodes = sorted({**self.before, **self.after}, key=lambda node: (-abs(self._change(node)), node))
        lines = [f"{'node':<32}{'before':>10}{'after':>10}{'change':>10}"]
        for node in nodes[:MAX_ROWS]:
            before, after = (_percent(shares.get(node)) for shares in (self.before, self.after))
            lines.append(f"{_cut(node, 31):<32}{before:>10}{after:>10}{100 * self._change(node):>+8.2f} %")
        return [*lines, *_more(len(nodes), "nodes, which change less")]

    def _change(self, node: str) -> float:
        return self.after.get(node, 0.0) - self.before.get(node, 0.0)

    def _peak(self) -> str:
        return f"{'peak to average':<32}{self.peak_before:>10.3f}{self.peak_after:>10.3f}"

    def _moves(self) -> list[str]:
        lines = [f"{'keys that move':<42}{_percent(self.moved):>10}"]
        for (source, target), share in list(self.moves.items())[:MAX_ROWS]:
            lines.append(f"{'  ' + _cut(source, 17) + ' → ' + _cut(target, 17):<42}{_percent(share):>10}")
        return [*lines, *_more(len(self.moves), "smaller moves")]


def compare(before: Circle, after: Circle) -> Preview:
    """Compare two rings in one sweep over the union of their points."""
    arcs = _arcs(before, after)
    shares_before, shares_after = _shares(before, arcs, 0), _shares(after, arcs, 1)
    moves = {
        (source, target): length / POSITIONS
        for (source, target), length in arcs.most_common()
        if source != target and source is not None and target is not None
    }
    return Preview(
        before=shares_before,
        after=shares_after,
        peak_before=_peak(shares_before, before.weights),
        peak_after=_peak(shares_after, after.weights),
        moved=sum(length for (source, target), length in arcs.items() if source != target) / POSITIONS,
        moves=moves,
    )


def _arcs(before: Circle, after: Circle) -> Counter[tuple[str | None, str | None]]:
    """(owner before, owner after) → number of positions."""
    arcs: Counter[tuple[str | None, str | None]] = Counter()
    i = j = start = 0
    for point in sorted({*before.points, *after.points, POSITIONS - 1}):
        while i < len(before.points) and before.points[i] < start:
            i += 1
        while j < len(after.points) and after.points[j] < start:
            j += 1
        arcs[before.owners[i], after.owners[j]] += point + 1 - start
        start = point + 1
    return arcs


def _shares(circle: Circle, arcs: Counter[tuple[str | None, str | None]], side: int) -> dict[str, float]:
    lengths: Counter[str | None] = Counter()
    for owners, length in arcs.items():
        lengths[owners[side]] += length
    return {name: lengths[name] / POSITIONS for name in sorted(circle.weights)}


def _peak(shares: Mapping[str, float], weights: Mapping[str, float]) -> float:
    total = sum(weights.values())
    return max((share / (weights[name] / total) for name, share in shares.items()), default=0.0)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _cut(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _more(count: int, of_what: str) -> list[str]:
    return [f"… and {count - MAX_ROWS} more {of_what}"] if count > MAX_ROWS else []
