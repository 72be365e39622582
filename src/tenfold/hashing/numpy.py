"""A million keys at once: the same answers as one by one, found with numpy.

Whole numbers are the fast case: CRC-32 is linear, so that of a decimal number is the exclusive or of the CRCs
of its digits in groups of four, each looked up in a table of 10,000. Text and bytes are hashed one by one in
C, since whatever numpy does with a list of objects costs more than their CRC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from tenfold.hashing.circle import Circle
from tenfold.hashing.keys import MASK, MULTIPLIER, Key, encoded

Positions = NDArray[np.uint32]
Numbers = NDArray[np.int64]
Indexes = NDArray[np.int32]

GROUP = 10_000
# Keys at a time: intermediate arrays stay in the processor's cache.
BLOCK = 1 << 15
MOST_BITS = 20


def owners(circle: Circle, keys: Collection[Key]) -> list[str | None]:
    """The owner of each key on a circle that is not empty."""
    if circle.vectors is None:
        circle.vectors = Vectors(circle)
    vectors: Vectors = circle.vectors
    found: list[str | None] = []
    numbers = whole_numbers(keys)
    crcs = None if numbers is not None else one_by_one(keys)
    for start in range(0, len(keys), BLOCK):
        block = slice(start, start + BLOCK)
        hashed = decimal_crcs(numbers[block]) if numbers is not None else crcs[block]  # type: ignore[index]
        found += vectors.owners(hashed * np.uint32(MULTIPLIER), len(keys))
    return found


def whole_numbers(keys: Collection[Any]) -> Numbers | None:
    """The keys as an array, if they are whole numbers from 0 to 2⁶³ - 1, else None."""
    if isinstance(keys, np.ndarray):
        if keys.ndim != 1 or keys.dtype.kind not in "iu" or keys.max() > np.iinfo(np.int64).max:
            return None
        numbers: Numbers = keys.astype(np.int64, copy=False)
    elif set(map(type, keys)) == {int}:
        try:
            numbers = np.fromiter(keys, np.int64, len(keys))
        except OverflowError:
            return None
    else:
        return None
    return numbers if numbers.min() >= 0 else None


def one_by_one(keys: Collection[Any]) -> Positions:
    """The CRC-32 of each key, from C in a loop in C."""
    many = keys.tolist() if isinstance(keys, np.ndarray) else keys
    kinds = set(map(type, many))
    data: Iterable[bytes] = many
    if kinds == {str}:
        data = map(str.encode, many)
    elif kinds != {bytes}:
        data = map(encoded, many)
    return np.fromiter(map(crc32, data), np.uint32, len(many))


def decimal_crcs(numbers: Numbers) -> Positions:
    """The CRC-32 of each number's decimal text; numbers of equally many groups go together."""
    least, most = groups(int(numbers.min())), groups(int(numbers.max()))
    if least == most:
        return _grouped_crcs(numbers, most)
    found = np.empty(len(numbers), np.uint32)
    for count in range(least, most + 1):
        chosen = (numbers >= (GROUP ** (count - 1) if count > 1 else 0)) & (numbers <= GROUP**count - 1)
        found[chosen] = _grouped_crcs(numbers[chosen], count)
    return found


def groups(number: int) -> int:
    """How many groups of four digits a number's decimal text has; the first may be shorter."""
    return -(-len(str(number)) // 4)


def _grouped_crcs(numbers: Numbers, count: int) -> Positions:
    found: Positions | None = None
    for behind in range(count - 1):
        rest = numbers // GROUP
        part = padded(behind).take(numbers - rest * GROUP)
        found = part if found is None else np.bitwise_xor(found, part, out=found)
        numbers = rest
    part = leading(count - 1).take(numbers)
    return part if found is None else np.bitwise_xor(found, part, out=found)


@cache
def leading(behind: int) -> Positions:
    """CRC-32 of each first group, without leading zeros, before ``behind`` groups of zero bytes."""
    zeros = bytes(4 * behind)
    return np.fromiter((crc32(b"%d" % n + zeros) for n in range(GROUP)), np.uint32, GROUP)


@cache
def padded(behind: int) -> Positions:
    """What each later group, padded to four digits, adds to that: CRC-32 without the share of its length."""
    zeros, length = bytes(4 * behind), crc32(bytes(4 * behind + 4))
    return np.fromiter((crc32(b"%04d" % n + zeros) ^ length for n in range(GROUP)), np.uint32, GROUP)


class Vectors:
    """A circle's points as arrays, and a table from the first bits of a position to the point that follows.

    The table is made by the first batch that is large enough to repay it; shorter ones are bisected.
    """

    def __init__(self, circle: Circle) -> None:
        # A last point that no position lies behind ends every search.
        self._points = np.append(np.frombuffer(circle.points, np.uint32), np.uint32(MASK))
        self._owners = np.array(circle.owners, object)
        self._bits = min(MOST_BITS, (len(circle.points) * 32 - 1).bit_length())
        self._table: Indexes | None = None

    def owners(self, positions: Positions, expected: int) -> list[str | None]:
        """The owner of each position; ``expected`` is how many there will be in all."""
        found: list[str | None] = self._owners.take(self._indexes(positions, expected)).tolist()
        return found

    def _indexes(self, positions: Positions, expected: int) -> NDArray[Any]:
        if self._table is None:
            if expected < (1 << self._bits) // 4:
                return np.searchsorted(self._points[:-1], positions)
            self._table = self._stretches()
        found = self._table.take(positions >> np.uint32(32 - self._bits))
        unsure = np.flatnonzero(found < 0)
        found[unsure] = self._followed(~found[unsure], positions[unsure])
        return found

    def _followed(self, indexes: Indexes, positions: Positions) -> Indexes:
        while (behind := self._points.take(indexes) < positions).any():
            indexes += behind
        return indexes

    def _stretches(self) -> Indexes:
        """For each stretch of the ring the point that follows; with points inside, ~ the first of them."""
        stretches = self._points[:-1] >> np.uint32(32 - self._bits)
        counts = np.bincount(stretches, minlength=1 << self._bits)
        table = (np.cumsum(counts) - counts).astype(np.int32)
        return np.where(counts > 0, ~table, table)
