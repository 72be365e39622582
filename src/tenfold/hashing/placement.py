"""What every way of placing keys offers, and what the names and weights of nodes have to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Protocol

from tenfold.errors import SettingsError
from tenfold.hashing.keys import Key

HEAVIEST = 10_000.0


class Placement(Protocol):
    """Places keys on nodes. Whoever takes one works with a ring, rendezvous, jump and bounded loads alike."""

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node and its weight."""

    def get_node(self, key: Key) -> str | None:
        """The node of a key, or None where there is no node."""

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """The first ``n`` distinct nodes of a key, the best first; all of them where there are fewer."""

    def walk(self, key: Key) -> Iterator[str]:
        """Every node once, in the key's order of preference."""


def weights(nodes: Iterable[str] | Mapping[str, float]) -> dict[str, float]:
    """Nodes and their weights; names alone weigh 1 each.

    Raises:
        SettingsError: a name is empty, no text or there twice, or a weight is not above 0.
    """
    if isinstance(nodes, str | bytes):
        raise SettingsError(f"nodes are several names or a mapping from name to weight, not {nodes!r} alone")
    if isinstance(nodes, Mapping):
        return {named(name): weighed(name, weight) for name, weight in nodes.items()}
    found: dict[str, float] = {}
    for name in nodes:
        if named(name) in found:
            raise SettingsError(f"node {name!r} is there twice; give it a weight of 2 instead")
        found[name] = 1.0
    return found


def named(name: str) -> str:
    """The name itself, when it can be one."""
    if isinstance(name, str) and name and "\0" not in name and name.isprintable():
        return name
    raise SettingsError(f"a node's name is printable text, not {name!r}")


def weighed(name: str, weight: float) -> float:
    """The weight as a float, when it can be one."""
    if isinstance(weight, int | float) and isfinite(weight) and 0 < weight <= HEAVIEST:
        return float(weight)
    raise SettingsError(
        f"node {name!r} weighs {weight!r}, which is not above 0 and at most {HEAVIEST:,.0f}; "
        "a node that should get nothing is removed"
    )


def missing(name: str, nodes: Iterable[str]) -> SettingsError:
    """What to raise about a node that is not there."""
    known = sorted(nodes)
    shown = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
    return SettingsError(f"there is no node {name!r}; there is {shown or 'none at all'}")
