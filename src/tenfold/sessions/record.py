"""What is kept of a session, as bytes: JSON with a format version. Pure.

Each value of a session stays encoded until somebody asks for it, so that a request pays for the keys that it
touches. Instances of two releases share a store while one replaces the other, hence two numbers in one:
``format // 100`` changes when an older release could not read a record; such a record is left alone (nobody
reads, replaces or forgets it: 503), and no release writes what the one before cannot read. ``format % 100``
grows when a field is added; an older release ignores such a field and hands it on when it writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tenfold.errors import SessionError, SessionSizeError, SessionStoreError

FORMAT = 100


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A session at rest; times are seconds since 1970."""

    format: int = msgspec.field(name="v")
    created: float = msgspec.field(name="c")
    seen: float = msgspec.field(name="l")
    ends: float = msgspec.field(name="e")
    digest: str = msgspec.field(name="s", default="")
    rotated: float = msgspec.field(name="r", default=0.0)
    principal: str | None = msgspec.field(name="p", default=None)
    device: str = msgspec.field(name="d", default="")
    data: dict[str, msgspec.Raw] = msgspec.field(name="k", default_factory=dict)
    newer: dict[str, msgspec.Raw] = msgspec.field(name="newer", default_factory=dict)


_decode = msgspec.json.Decoder(Record).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_OURS = {field.encode_name for field in msgspec.structs.fields(Record)}

decode_value = msgspec.json.Decoder().decode
encode_quickly = _encode


def decode(payload: bytes) -> Record | None:
    """The record in a payload; None where there is none.

    Raises:
        SessionStoreError: a newer release wrote it in a format that this one cannot read.
    """
    try:
        record = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        _check_foreign(payload)
        return None
    if record.format == FORMAT:
        return record
    if record.format // 100 != FORMAT // 100:
        raise _unreadable()
    unknown = {name: value for name, value in _decode_fields(payload).items() if name not in _OURS}
    return msgspec.structs.replace(record, newer=unknown)


def encode(record: Record) -> bytes:
    """The payload of a record, with whatever a newer release had added to it."""
    if not record.newer:
        return _encode(record)
    own = _decode_fields(_encode(msgspec.structs.replace(record, newer={})))
    return _encode({**record.newer, **own})


def encode_value(key: str, value: Any) -> bytes:
    """A value as JSON, if that is what comes back.

    Raises:
        SessionError: it would come back as something else, as a tuple, a date or a key that is a number do.
    """
    try:
        raw = _encode(value)
        same = decode_value(raw) == value
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise SessionError(f"session[{key!r}] cannot be kept as JSON: {error}") from None
    if not same:
        raise SessionError(
            f"session[{key!r}] would not come back from JSON as the {type(value).__name__} that it is: "
            "keep text, numbers, booleans, None, and lists and dicts (with text as keys) of them"
        )
    return raw


def check_size(size: int, data: Mapping[str, bytes | msgspec.Raw], most: int) -> None:
    """Raises SessionSizeError, naming the largest key, when ``size`` is more than ``most`` bytes."""
    if size <= most:
        return
    sizes = {key: memoryview(value).nbytes for key, value in data.items()}
    largest = max(sizes, key=lambda key: sizes[key], default="")
    raise SessionSizeError(
        f"the session would take {size:,} bytes, more than its limit of {most:,}; the largest key is "
        f"{largest[:80]!r} with {sizes.get(largest, 0):,}: keep large things elsewhere and their id here"
    )


def _check_foreign(payload: bytes) -> None:
    """Raises when it is something of ours in a format to come, which nobody may lose."""
    try:
        written = decode_value(_decode_fields(payload)["v"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return
    if isinstance(written, int) and written // 100 > FORMAT // 100:
        raise _unreadable()


def _unreadable() -> SessionStoreError:
    return SessionStoreError(
        "a newer release of tenfold wrote this session in a format that this one cannot read: "
        "finish the rollout, and roll back by one release at most"
    )


# When a session is over, and when its expiry is pushed back. Pure: every time is an argument.
#
# Two clocks share the work. The store notices that a session is *idle*: each write gives the payload a
# lifetime there, so that a step of an instance's wall clock ends and revives no session. The wall clock
# decides only about the absolute end, days away, and about when a refresh is due.
IDLE_S = 3600.0
ABSOLUTE_S = 7 * 86_400.0
REFRESHES = 10  # at most so many in an idle lifetime


def is_over(now: float, ends: float) -> bool:
    """Whether the absolute lifetime has passed."""
    return now >= ends


def is_idle(now: float, seen: float, idle_s: float) -> bool:
    """Whether nobody came for ``idle_s``; only for what no store expires."""
    return now - seen >= idle_s


def is_due(now: float, seen: float, idle_s: float) -> bool:
    """Whether this request pushes the idle expiry back.

    Between two refreshes lies a tenth of ``idle_s``, so a session lives between 0.9 and 1.0 × ``idle_s``
    after its last request, never longer. A ``seen`` from the future, left by a clock that has been put right,
    is replaced too.
    """
    return abs(now - seen) * REFRESHES >= idle_s


def lifetime_s(now: float, ends: float, idle_s: float) -> float:
    """What the store is told: the idle time, cut off at the absolute end."""
    return max(0.001, min(idle_s, ends - now))
