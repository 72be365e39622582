"""Stored entries and tags: their formats, and the judgement whether an entry may be served. Pure.

A tag is a random generation and the log position of the commit that made it. An entry names the tags that
were read *before* its value was loaded. It may be served while each of them still has the same generation, so
that an
invalidation between the load and the store, or long after, has the same effect: the entry is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from tenfold.errors import PositionError, SettingsError
from tenfold.positions import Token, merge_tokens

__all__ = [
    "Entry",
    "Serving",
    "Tag",
    "TagTemplate",
    "check_tag",
    "covers",
    "encodable",
    "judge",
    "required_token",
]

GENERATION_BYTES = 9
_TAG = re.compile(r"[^@\s\x00-\x1f\x7f{}][^\s\x00-\x1f\x7f{}]{0,199}")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Tag:
    """What the store has under a tag's name.

    Attributes:
        generation: random; another one after each invalidation.
        token: a log position at or after the commit that the last invalidation belongs to; None without a
            fence.
    """

    generation: bytes
    token: Token | None = None

    def pack(self) -> bytes:
        """Encode to bytes."""
        return self.generation + (self.token.pack() if self.token else b"")

    @classmethod
    def unpack(cls, data: bytes | None) -> Tag | None:
        """Decode the bytes of :meth:`pack`; None if there are none, or of another format."""
        if data is None or len(data) < GENERATION_BYTES:
            return None
        try:
            position = data[GENERATION_BYTES:]
            return cls(data[:GENERATION_BYTES], Token.unpack(position) if position else None)
        except PositionError:
            return None


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A stored value.

    Attributes:
        value: encoded.
        tags: names and generations, read before the load.
        token: a log position whose state the value includes, packed; empty if it is not known.
        on_primary: whether it was loaded on the primary: then transactions up to that position may have been
            in their COMMIT, and invisible.
        fresh_until, expires_at: seconds since 1970.
        follows: False for a value without tags, which is kept for its time whatever is written.
    """

    value: bytes
    tags: tuple[tuple[str, bytes], ...]
    token: bytes
    on_primary: bool
    fresh_until: float
    expires_at: float
    follows: bool = True

    def pack(self) -> bytes:
        """Encode to bytes."""
        return _ENCODER.encode(self)

    @classmethod
    def unpack(cls, data: bytes | None) -> Entry | None:
        """Decode the bytes of :meth:`pack`; None if there are none, or of another format."""
        if data is None:
            return None
        try:
            return _DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    @property
    def position(self) -> Token | None:
        """The token, decoded."""
        return Token.unpack(self.token) if self.token else None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Entry)


class Serving(Enum):
    """Whether an entry may be served."""

    HIT = "serve it"
    REFRESH = "serve it, and load it again in the background"
    MISS = "load the value"


def judge(
    entry: Entry | None,
    generations: Mapping[str, bytes | None],
    token: Token | None,
    *,
    now: float,
    watermark: Token | None = None,
) -> Serving:
    """Decide whether an entry may be served to a reader.

    Args:
        generations: of the entry's tags, read together with it.
        token: what the reader has seen.
        now: seconds since 1970.
        watermark: all invalidations of commits before it have been applied; only with a durable log of them.
    """
    if entry is None or now >= entry.expires_at:
        return Serving.MISS
    for name, generation in entry.tags:
        if generations.get(name) != generation:
            return Serving.MISS
    if token is not None and entry.follows and not covers(entry, token, watermark=watermark):
        return Serving.MISS
    return Serving.HIT if now < entry.fresh_until else Serving.REFRESH


def covers(entry: Entry, token: Token, *, watermark: Token | None = None) -> bool:
    """Return whether an entry whose tags are unchanged shows all that the holder of ``token`` has seen.

    A value from the primary has to be from a *later* position: while a COMMIT waits for its standby, a reader
    is told the very position that the writer is told afterwards, and still reads the old row.
    """
    loaded = entry.position
    if loaded is not None and _is_same_timeline(loaded, token):
        ahead = loaded.position - token.position
        if ahead > 0 or (ahead == 0 and not entry.on_primary):
            return True
    return (
        watermark is not None and _is_same_timeline(watermark, token) and watermark.position > token.position
    )


def _is_same_timeline(one: Token, other: Token) -> bool:
    return (one.system, one.timeline) == (other.system, other.timeline)


def required_token(token: Token | None, tags: Iterable[Tag]) -> Token | None:
    """What a load has to include: what its reader has seen, and the commits of all invalidations."""
    for tag in tags:
        token = merge_tokens(token, tag.token)
    return token


# ------------------------------------------------------------------ names of tags


def check_tag(name: object) -> str:
    """Return a tag's name: any text, since its parts may come from users.

    Raises:
        SettingsError: it is none, or begins with @.
    """
    if not isinstance(name, str) or not name or name.startswith("@"):
        raise SettingsError(f"{str(name)[:60]!r} is no tag: a tag is a text that does not begin with @")
    return encodable(name)


def encodable(name: str) -> str:
    """A name of a tag that UTF-8 can encode: half of a surrogate pair is written as an escape."""
    return name.encode(errors="backslashreplace").decode()


def _check_declared(name: object) -> str:
    if not isinstance(name, str) or not _TAG.fullmatch(name):
        raise SettingsError(
            f"{str(name)[:60]!r} is no tag: a tag is a text of up to 200 characters without blanks, "
            "braces and a leading @, such as 'products' or 'product:42'"
        )
    return name


class TagTemplate:
    """A tag that may contain parameters: ``product:{product_id}``.

    Raises:
        SettingsError: it is not one, or names a parameter that the function does not have.
    """

    def __init__(self, text: str, *, parameters: Iterable[str], function: str) -> None:
        names = _PLACEHOLDER.findall(text) if isinstance(text, str) else []
        _check_declared(_PLACEHOLDER.sub("x", text) if isinstance(text, str) else text)
        if unknown := [name for name in names if name not in set(parameters)]:
            raise SettingsError(
                f"the tag {text!r} names {unknown[0]!r}, which is no keyed parameter of {function}"
            )
        self.text, self.is_fixed = text, not names

    def name(self, arguments: Mapping[str, Any]) -> str:
        """The tag of one call."""
        if self.is_fixed:
            return self.text
        name = _PLACEHOLDER.sub(lambda match: str(arguments[match[1]]), self.text)
        return encodable(f"\\{name}" if name.startswith("@") else name)  # the cache's own begin with @
