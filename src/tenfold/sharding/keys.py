"""Shard keys: a canonical text for each, and the bucket that SHA-256 of it gives.

``tenfold.key()`` and ``tenfold.bucket()`` in ``shard.sql`` are the same functions for PostgreSQL, where a
CHECK constraint holds every row against them. The mapping is frozen: another one would lose every row.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Literal

from tenfold.errors import SettingsError

__all__ = [
    "BUCKETS",
    "KEY_TYPES",
    "Key",
    "KeyType",
    "bucket_of",
    "encode_key",
    "parse_key",
    "parse_key_types",
]

Key = int | str | uuid.UUID | tuple[int | str | uuid.UUID, ...]
KeyType = Literal["int", "text", "uuid"]

BUCKETS = 4096
KEY_TYPES: dict[KeyType, type] = {"int": int, "text": str, "uuid": uuid.UUID}
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_MAX_TEXT_BYTES = 1024


def bucket_of(encoded: str) -> int:
    """Return the bucket, 0 to 4095, of a key as :func:`encode_key` writes it: the last 12 bits of SHA-256."""
    digest = hashlib.sha256(encoded.encode()).digest()
    return (digest[30] & 15) << 8 | digest[31]


def encode_key(key: Key, types: tuple[KeyType, ...]) -> str:
    """Write a key as text: for each part its type, its length in bytes of UTF-8, and itself (``i2:42``).

    Args:
        key: a value, or a tuple of as many as there are types.
        types: what the directory declares; 42 and "42" are different keys, and only one of them is accepted.

    Raises:
        SettingsError: the key is of another type, or cannot be stored by PostgreSQL.
    """
    if len(types) == 1:
        return _encode_part(key, types[0])
    if not isinstance(key, tuple) or len(key) != len(types):
        raise SettingsError(f"{_shorten(key)} is no shard key here: pass a tuple of {', '.join(types)}")
    return "".join(_encode_part(part, kind) for part, kind in zip(key, types, strict=True))


def _encode_part(part: object, kind: KeyType) -> str:
    # By exact type: True is an int in Python, and a bucket of its own in no database.
    if kind == "int" and type(part) is int and _INT_MIN <= part <= _INT_MAX:
        text = str(part)
        return f"i{len(text)}:{text}"
    if kind == "uuid" and isinstance(part, uuid.UUID):
        return f"u36:{part}"
    if kind == "text" and isinstance(part, str):
        return _encode_text(part)
    wanted = {"int": "an int of 64 bits", "uuid": "a uuid.UUID", "text": "a str"}[kind]
    raise SettingsError(f"{_shorten(part)} is no shard key here: pass {wanted}, as the directory declares")


def _encode_text(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise SettingsError(
            "a shard key holds half of a surrogate pair: pass text that is valid UTF-8"
        ) from None
    if not 0 < size <= _MAX_TEXT_BYTES or "\0" in text:
        raise SettingsError(f"a shard key is text of 1 to {_MAX_TEXT_BYTES} bytes without a zero byte")
    return f"t{size}:{text}"


def _shorten(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:40]}…"


def parse_key_types(text: str) -> tuple[KeyType, ...]:
    """Parse ``int`` or ``text,int``, as the directory stores the types of its keys.

    Raises:
        SettingsError: a type is unknown.
    """
    found: list[KeyType] = []
    for name in text.split(","):
        if (kind := next((one for one in KEY_TYPES if one == name.strip()), None)) is None:
            raise SettingsError(f"no type of keys {name.strip()[:20]!r}: write int, text, uuid, or text,int")
        found.append(kind)
    return tuple(found)


def parse_key(text: str, types: tuple[KeyType, ...]) -> Key:
    """Parse a key that was typed: ``42``, or ``acme,42`` where a key has several parts.

    Raises:
        SettingsError: it is no key of these types.
    """
    words = text.split(",") if len(types) > 1 else [text]
    parts: list[int | str | uuid.UUID] = []
    try:
        for word, kind in zip(words, types, strict=True):
            parts.append(KEY_TYPES[kind](word))
    except ValueError:
        raise SettingsError(f"{text[:40]!r} is no key of type {','.join(types)}") from None
    return parts[0] if len(types) == 1 else tuple(parts)
