"""Random bits of session ids, estimated from several of them in the order of their issue. Pure.

An upper bound: a position that varies counts as random. Constant positions, leading ones that only grow (a
counter, a clock) and repetitions do not count. A hash of a counter looks random and is not detected.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

# A random UUID has 122 random bits of its 128, and is good enough.
ENOUGH_BITS = 120.0

_ALPHABETS = (
    string.digits,
    string.hexdigits.lower(),
    string.hexdigits.upper(),
    string.digits + string.ascii_lowercase,
    string.digits + string.ascii_uppercase,
    string.ascii_letters + string.digits,
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """At most ``bits`` random bits in an id; ``why`` names the positions that do not count."""

    bits: float
    why: str = ""


def estimate(ids: Sequence[str]) -> Estimate:
    """The random bits in ids that were issued one after the other; at least four of them.

    Signed values (three parts between dots, or two) count by their last part, the signature, without which
    none can be forged.
    """
    if len(set(ids)) < len(ids):
        return Estimate(0.0, f"{len(ids) - len(set(ids))} of {len(ids)} were given out before")
    parts = [signature(found) for found in ids]
    width = max(map(len, parts))
    if all(set(part) <= set(string.hexdigits) for part in parts):
        parts = [part.zfill(width) for part in parts]
    columns = list(zip(*parts, strict=False))
    grows = _growing(parts)
    varying = [index for index, column in enumerate(columns) if len(set(column)) > 1 and index >= grows]
    seen = {letter for index in varying for letter in columns[index]}
    bits = len(varying) * math.log2(_alphabet(seen)) if varying else 0.0
    return Estimate(bits, _why(len(columns), len(varying), grows))


def signature(text: str) -> str:
    """The last part of a signed value (``payload.signature``); any other text as it is."""
    head, dot, tail = text.strip('"').rpartition(".")
    return tail if dot and len(head) >= 8 and len(tail) >= 8 else text


def _growing(parts: Sequence[str]) -> int:
    """The number of leading characters that never decrease from one id to the next; by chance hardly any."""
    for length in range(min(map(len, parts)), 0, -1):
        heads = [part[:length] for part in parts]
        if heads == sorted(heads) and len(set(heads)) > 1:
            return length
    return 0


def _alphabet(seen: set[str]) -> int:
    return next((len(letters) for letters in _ALPHABETS if seen <= set(letters)), 64)


def _why(length: int, varying: int, grows: int) -> str:
    if grows == length:
        return "each is greater than the one before"
    reasons = [f"{length} characters"]
    if grows:
        reasons.append(f"the first {grows} only grow")
    if length - grows > varying:
        reasons.append(f"{length - grows - varying} never change")
    return ", ".join(reasons)
