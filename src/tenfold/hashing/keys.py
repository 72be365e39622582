"""From a key to a number that is the same in every process, on every machine and in every version.

A ring needs a position among 2³² and asks for it at each lookup, so it takes the fastest hash that every
language ships: CRC-32, spread by a multiplication. CRC-32 alone is linear, and keys that count up would fill
the ring in patterns; the multiplier is a prime close to 2³² divided by the golden ratio (Knuth, The Art of
Computer Programming 3, 6.4). It is odd, so each position belongs to exactly one CRC. Rendezvous and jump need
more bits, not more speed, and take SHA-256. Neither is a defence: who chooses keys can choose their node.
"""

from __future__ import annotations

from hashlib import sha256
from operator import index
from zlib import crc32

from tenfold.errors import SettingsError

Key = str | bytes | int

POSITIONS = 1 << 32
MULTIPLIER = 0x9E3779B1
MASK = POSITIONS - 1


def encoded(key: Key) -> bytes:
    """The bytes of a key: text as UTF-8, bytes as they are, a whole number as its decimal text.

    So 42, "42" and b"42" are one key: an id reaches the same node whether it came from a URL or a database.

    Raises:
        SettingsError: the key is something else, which has no bytes of its own.
        UnicodeEncodeError: the text holds half of a surrogate pair.
    """
    if type(key) is int:
        return str(key).encode()
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, bytes | bytearray | memoryview):
        return bytes(key)
    if not isinstance(key, bool) and hasattr(key, "__index__"):
        return b"%d" % index(key)
    raise SettingsError(
        f"a key is text, bytes or a whole number, not {type(key).__name__}: "
        "name the part of it that decides where it belongs"
    )


def position(key: Key) -> int:
    """Where a key lies on a ring, 0 to 2³² - 1: ``crc32(key) · 0x9E3779B1 mod 2³²``."""
    return crc32(encoded(key)) * MULTIPLIER & MASK


def hash64(data: bytes) -> int:
    """The first eight bytes of SHA-256, the highest first."""
    return int.from_bytes(sha256(data).digest()[:8])
