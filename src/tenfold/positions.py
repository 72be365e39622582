"""Positions in PostgreSQL's log (LSN), and the token that carries the furthest one that a visitor has seen.

A position is written as ``16/B374D848``: the two halves of a 64-bit count of bytes. Those of one
system and timeline are ordered; those of different timelines are not, because a promotion starts a new one
and may leave out the end of the former.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from typing import Self

from tenfold.errors import PositionError

__all__ = [
    "SEGMENT_BYTES",
    "Token",
    "format_position",
    "merge_tokens",
    "normalize_position",
    "parse_position",
    "renew_token",
]

PAGE_BYTES = 8192
SEGMENT_BYTES = 16 * 1024 * 1024
_PAGE_HEADER, _SEGMENT_HEADER = 24, 40  # SizeOfXLogShortPHD and SizeOfXLogLongPHD of xlog_internal.h

_TEXT = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}")
_PACKED = struct.Struct(">BQIQI")
_FORMAT = 1
_LATEST = 2**32 - 1
_UNSURE = 1


def parse_position(text: str) -> int:
    """Parse ``16/B374D848`` to a number of bytes.

    Raises:
        PositionError: it is not a position.
    """
    if not _TEXT.fullmatch(text):
        raise PositionError(f"{text[:40]!r} is no log position: one looks like 16/B374D848")
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def format_position(position: int) -> str:
    """Write a position as PostgreSQL does (before version 19, which pads the lower half)."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def normalize_position(position: int, *, segment_bytes: int = SEGMENT_BYTES) -> int:
    """``position``, or the start of its page or segment where nothing but the header lies in between.

    ``pg_current_wal_insert_lsn()`` says where the next record would begin: behind the header of a page that
    is yet to be written. The position of a replica that has replayed everything is before that header.
    """
    if position % segment_bytes == _SEGMENT_HEADER:
        return position - _SEGMENT_HEADER
    if position % PAGE_BYTES == _PAGE_HEADER and position % segment_bytes != _PAGE_HEADER:
        return position - _PAGE_HEADER
    return position


@dataclass(frozen=True, slots=True)
class Token:
    """The furthest position of one database that a visitor has seen.

    Attributes:
        system: the cluster's system identifier, a large number; 0 where there are no positions and a time
            stands in, 1 where a position is owed.
        timeline: grows with every promotion.
        position: bytes of log; with ``system`` 0 milliseconds since 1970.
        expires_at: seconds since 1970; by then every replica that may serve has replayed the position.
    """

    system: int
    timeline: int
    position: int
    expires_at: int

    @classmethod
    def unsure(cls, *, expires_at: int) -> Self:
        """A token of a position that could not be asked for: only the primary will do."""
        return cls(_UNSURE, 0, 0, expires_at)

    def pack(self) -> bytes:
        """Encode to 25 bytes, to be signed."""
        expires_at = min(max(self.expires_at, 0), _LATEST)
        return _PACKED.pack(_FORMAT, self.system, self.timeline, self.position, expires_at)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode the bytes of :meth:`pack`.

        Raises:
            PositionError: they are not a token, or of a format that is not known here.
        """
        if len(data) != _PACKED.size or data[0] != _FORMAT:
            raise PositionError("this is no token of a log position: write or read once more to get one")
        return cls(*_PACKED.unpack(data)[1:])


def merge_tokens(one: Token | None, other: Token | None) -> Token | None:
    """Merge the tokens of a visitor who has seen both.

    The greater position of one timeline. Of two timelines the later: what only the former had is gone with
    it, the rest is below where the later began. Of two systems the one that was seen last, and
    above all an unsure one: it lasts until the primary was asked.
    """
    if one is None or other is None:
        return one or other
    if one.system != other.system:
        return max(one, other, key=lambda token: (token.system == _UNSURE, token.expires_at, token.system))
    furthest = max(one, other, key=lambda token: (token.timeline, token.position))
    return replace(furthest, expires_at=max(one.expires_at, other.expires_at))


def renew_token(held: Token | None, primary: Token) -> Token:
    """The token after a read or write on the primary, whose system and timeline are the current ones."""
    if held is None or (held.system, held.timeline) != (primary.system, primary.timeline):
        return primary
    return replace(
        primary,
        position=max(held.position, primary.position),
        expires_at=max(held.expires_at, primary.expires_at),
    )
