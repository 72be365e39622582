"""The protocol of placements, the hashes of keys, and the checks of nodes and weights.

A hash has to be the same in every process, on every machine and in every version. A ring needs a position
among 2³² at each lookup, so it takes the fastest hash that every language ships: CRC-32, multiplied. CRC-32
alone is linear, and keys that count up would fill the ring in patterns; the multiplier is a prime close to
2³² divided by the golden ratio (Knuth, The Art of Computer Programming 3, 6.4). It is odd, so each position
belongs to exactly one CRC. Rendezvous and jump hashing need more bits, not more speed, and take SHA-256.
Neither is a defence: a client that chooses keys can choose their node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from math import isfinite
from numbers import Real
from operator import index
from typing import Protocol
from zlib import crc32

from tenfold.errors import SettingsError

Key = str | bytes | int

POSITIONS = 1 << 32
MULTIPLIER = 0x9E3779B1
MASK = POSITIONS - 1
MAX_WEIGHT = 10_000.0


class Placement(Protocol):
    """Places keys on nodes: the interface of a ring, rendezvous, jump and bounded loads alike."""

    @property
    def nodes(self) -> Mapping[str, float]:
        """Every node and its weight."""

    def get_node(self, key: Key) -> str | None:
        """Return the node of a key, or None where there is no node."""

    def get_nodes(self, key: Key, n: int) -> list[str]:
        """Return the first ``n`` distinct nodes of a key, the best first; all where there are fewer."""

    def walk(self, key: Key) -> Iterator[str]:
        """Yield every node once, in the key's order of preference."""


# ------------------------------------------------------------------ keys


def encode_key(key: Key) -> bytes:
    """Return the bytes of a key: text as UTF-8, bytes as they are, a whole number as its decimal text.

    So 42, "42" and b"42" are one key: an id reaches the same node whether it came from a URL or a database.

    Raises:
        SettingsError: the key is of another type, which has no bytes of its own, or text with half of a
            surrogate pair, which has none in UTF-8.
    """
    if type(key) is int:
        return str(key).encode()
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise SettingsError(
                f"the key {key[:80]!r} has half of a surrogate pair, so UTF-8 cannot encode it: "
                "check the text where it comes from"
            ) from None
    if isinstance(key, bytes | bytearray | memoryview):
        return bytes(key)
    if not isinstance(key, bool) and hasattr(key, "__index__"):
        return b"%d" % index(key)
    raise SettingsError(
        f"a key is text, bytes or a whole number, not {type(key).__name__}: "
        "name the part of it that decides where it belongs"
    )


def ring_position(key: Key) -> int:
    """Return the position of a key on a ring, 0 to 2³² - 1: ``crc32(key) · 0x9E3779B1 mod 2³²``."""
    return crc32(encode_key(key)) * MULTIPLIER & MASK


def hash64(data: bytes) -> int:
    """Return the first eight bytes of SHA-256, the highest first, as a number."""
    return int.from_bytes(sha256(data).digest()[:8])


# ------------------------------------------------------------------ nodes and weights


def parse_nodes(nodes: Iterable[str] | Mapping[str, float]) -> dict[str, float]:
    """Return nodes and their weights; names alone weigh 1 each.

    Raises:
        SettingsError: a name is empty, not text or there twice, or a weight is not above 0.
    """
    if isinstance(nodes, str | bytes):
        raise SettingsError(f"nodes are several names or a mapping from name to weight, not {nodes!r} alone")
    if isinstance(nodes, Mapping):
        return {check_name(name): check_weight(name, weight) for name, weight in nodes.items()}
    weights: dict[str, float] = {}
    for name in nodes:
        if check_name(name) in weights:
            raise SettingsError(f"node {name!r} is there twice; give it a weight of 2 instead")
        weights[name] = 1.0
    return weights


def check_name(name: str) -> str:
    """Return ``name`` if it can name a node.

    Raises:
        SettingsError: it is empty, or not printable text.
    """
    if isinstance(name, str) and name and "\0" not in name and name.isprintable():
        return name
    raise SettingsError(f"a node's name is printable text, not {name!r}")


def check_weight(name: str, weight: float) -> float:
    """Return the weight of node ``name`` as a float.

    Raises:
        SettingsError: it is not above 0 and at most 10,000.
    """
    if isinstance(weight, Real) and isfinite(weight) and 0 < weight <= MAX_WEIGHT:
        return float(weight)
    raise SettingsError(
        f"node {name!r} weighs {weight!r}, which is not above 0 and at most {MAX_WEIGHT:,.0f}; "
        "a node that should get nothing is removed"
    )


def unknown_node_error(name: str, nodes: Iterable[str]) -> SettingsError:
    """Return the error to raise about a node that does not exist; it names those that do."""
    known = sorted(nodes)
    shown = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
    return SettingsError(f"there is no node {name!r}; there is {shown or 'none at all'}")
