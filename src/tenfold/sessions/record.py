"""The session record: its token, its JSON form, the changes of a request, its expiry. Pure.

A client's token is ``<handle>.<secret>``, both issued by the server. The handle names the session as long as
it lives; it is no credential and may be shown and logged. The secret proves that the session is the client's.
Only its digest is stored, so that neither a reader of the store nor its logs can take a session over. A login
replaces the secret and nothing else: one write to one key, with no moment at which both tokens, or neither,
are valid.

Each value of a session stays encoded until it is accessed, so that a request pays for the keys that it
touches. Instances of two releases share a store during a rollout, hence two numbers in one: ``format // 100``
changes when an older release could not read a record; the older release then refuses to read, replace or
delete that record (503), and no release writes what the one before cannot read. ``format % 100`` grows when a
field is added; an older release ignores such a field and preserves it when it writes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tenfold.errors import SessionError, SessionSizeError, SessionStoreError

# ------------------------------------------------------------------ tokens

HANDLE_LENGTH = 22  # 128 bits in Base64

_TOKEN = re.compile(r"([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})").fullmatch


def new_handle() -> str:
    """128 random bits, URL-safe."""
    return secrets.token_urlsafe(16)


def new_secret() -> str:
    """256 random bits, URL-safe."""
    return secrets.token_urlsafe(32)


def split_token(token: str) -> tuple[str, str] | None:
    """Handle and secret; None if the token does not have the form of ours."""
    match = _TOKEN(token)
    return match.group(1, 2) if match else None  # type: ignore[return-value]


def secret_digest(secret: str) -> str:
    """SHA-256 of a secret. No key stretching: 256 random bits cannot be guessed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_same_digest(one: str, other: str) -> bool:
    """Compare two digests in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def principal_group(principal: str) -> str:
    """The name under which a store lists a principal's sessions.

    Raises:
        SessionError: the principal is not text, or text that UTF-8 cannot encode.
    """
    require_text("a principal", principal)
    return hashlib.sha256(b"tenfold principal\0" + principal.encode()).hexdigest()


# ------------------------------------------------------------------ JSON


def require_text(what: str, text: object) -> None:
    """Refuse what is no text, and half of a surrogate pair, as JSON can bring it: UTF-8 cannot encode it.

    Raises:
        SessionError: it cannot be stored.
    """
    if not isinstance(text, str):
        raise SessionError(f"{what} of a session is text, not {type(text).__name__}: write str({text!r})")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SessionError(
            f"{what} of a session cannot be stored: {text[:80]!r} has half of a surrogate pair; "
            "check the text where it comes from"
        ) from None


FORMAT = 100


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A session at rest; times are seconds since 1970.

    Attributes:
        ends: the absolute end.
        digest: of the secret.
        rotated: when the secret was last replaced.
        device: label of the login.
        data: the session's keys, each value as JSON.
        unknown: fields that a newer release has added.
    """

    format: int = msgspec.field(name="v")
    created: float = msgspec.field(name="c")
    last_seen: float = msgspec.field(name="l")
    ends: float = msgspec.field(name="e")
    digest: str = msgspec.field(name="s", default="")
    rotated: float = msgspec.field(name="r", default=0.0)
    principal: str | None = msgspec.field(name="p", default=None)
    device: str = msgspec.field(name="d", default="")
    data: dict[str, msgspec.Raw] = msgspec.field(name="k", default_factory=dict)
    unknown: dict[str, msgspec.Raw] = msgspec.field(name="newer", default_factory=dict)


_decode = msgspec.json.Decoder(Record).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_KNOWN_FIELDS = {field.encode_name for field in msgspec.structs.fields(Record)}

decode_value = msgspec.json.Decoder().decode
encode_unchecked = _encode


def decode_record(payload: bytes) -> Record | None:
    """Decode a payload; None if it is no record.

    Raises:
        SessionStoreError: a newer release wrote it in a format that this one cannot read.
    """
    try:
        record = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        _check_not_newer(payload)
        return None
    if record.format == FORMAT:
        return record
    if record.format // 100 != FORMAT // 100:
        raise _newer_format_error()
    unknown = {name: value for name, value in _decode_fields(payload).items() if name not in _KNOWN_FIELDS}
    return msgspec.structs.replace(record, unknown=unknown)


def encode_record(record: Record) -> bytes:
    """Encode a record, including fields that a newer release had added."""
    if not record.unknown:
        return _encode(record)
    known = _decode_fields(_encode(msgspec.structs.replace(record, unknown={})))
    return _encode({**record.unknown, **known})


def encode_value(key: str, value: Any) -> bytes:
    """Encode a value as JSON, provided that it decodes to the same value.

    Raises:
        SessionError: it would decode to something else, as a tuple, a date or a numeric key do.
    """
    try:
        raw = _encode(value)
        same = decode_value(raw) == value
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise SessionError(f"session[{key!r}] cannot be stored as JSON: {error}") from None
    if not same:
        raise SessionError(
            f"session[{key!r}] would not come back from JSON as the {type(value).__name__} that it is: "
            "store text, numbers, booleans, None, and lists and dicts (with text as keys) of them"
        )
    return raw


def check_size(size: int, data: Mapping[str, bytes | msgspec.Raw], max_bytes: int) -> None:
    """Raise SessionSizeError, naming the largest key, if ``size`` exceeds ``max_bytes``."""
    if size <= max_bytes:
        return
    sizes = {key: memoryview(value).nbytes for key, value in data.items()}
    largest = max(sizes, key=lambda key: sizes[key], default="")
    raise SessionSizeError(
        f"the session would take {size:,} bytes, more than its limit of {max_bytes:,}; the largest key is "
        f"{largest[:80]!r} with {sizes.get(largest, 0):,}: keep large things elsewhere and their id here"
    )


def _check_not_newer(payload: bytes) -> None:
    """Raise if it is a record in a future format, which must not be lost."""
    try:
        written = decode_value(_decode_fields(payload)["v"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return
    if isinstance(written, int) and written // 100 > FORMAT // 100:
        raise _newer_format_error()


def _newer_format_error() -> SessionStoreError:
    return SessionStoreError(
        "a newer release of tenfold wrote this session in a format that this one cannot read: "
        "finish the rollout, and roll back by one release at most"
    )


# ------------------------------------------------------------------ changes of a request

Function = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Edit:
    """The change of one key: a new value, or functions of the stored one, or both.

    Attributes:
        replaces: whether it starts from ``value`` and not from the stored value.
        value: encoded; None deletes the key.
        functions: each with its encoded default.
    """

    replaces: bool = False
    value: bytes | None = None
    functions: tuple[tuple[Function, bytes], ...] = ()

    def then(self, function: Function, default: bytes) -> Edit:
        """Return this edit, followed by a function of its result."""
        return Edit(self.replaces, self.value, (*self.functions, (function, default)))

    def apply(self, key: str, stored: bytes | msgspec.Raw | None) -> bytes | msgspec.Raw | None:
        """Return the key's new value; None if the key goes."""
        value = self.value if self.replaces else stored
        for function, default in self.functions:
            # Decoded anew each time: a function may change its argument.
            value = encode_value(key, function(decode_value(default if value is None else value)))
        return value


@dataclass(slots=True)
class Changes:
    """Everything that one save does, so that it can be applied to whatever is stored by then.

    Attributes:
        edits: by key.
        handle: of a new session, if none is stored.
        secret: a new one; empty to keep the present one.
        principal: who logs in; None without a login.
        device: label of the login.
    """

    edits: Mapping[str, Edit] = field(default_factory=dict)
    handle: str = ""
    secret: str = field(default="", repr=False)
    principal: str | None = None
    device: str = ""


def apply_changes(record: Record | None, changes: Changes, *, now: float, absolute_s: float) -> Record:
    """Return the record after the changes; keys that they do not name stay as they are."""
    now = round(now, 3)
    fields: dict[str, Any] = {
        "last_seen": now,
        "data": _apply_edits(record.data if record else {}, changes.edits),
    }
    if changes.secret:
        fields |= {"digest": secret_digest(changes.secret), "rotated": now}
    if record is None or changes.principal is not None:
        fields |= {"created": now, "ends": now + absolute_s}
    if changes.principal is not None:
        fields |= {"principal": changes.principal, "device": changes.device}
    return msgspec.structs.replace(record, **fields) if record else Record(format=FORMAT, **fields)


def _apply_edits(data: Mapping[str, msgspec.Raw], edits: Mapping[str, Edit]) -> dict[str, msgspec.Raw]:
    result = dict(data)
    for key, edit in edits.items():
        value = edit.apply(key, result.get(key))
        if value is None:
            result.pop(key, None)
        else:
            result[key] = msgspec.Raw(value)
    return result


# ------------------------------------------------------------------ expiry

# Two clocks share the work. The store expires *idle* sessions: each write gives the payload a lifetime there,
# so that a step of an instance's wall clock neither ends nor revives a session. The wall clock decides only
# about the absolute end, days away, and about when a refresh is due.
IDLE_S = 3600.0
ABSOLUTE_S = 7 * 86_400.0
MAX_REFRESHES = 10  # in one idle lifetime


def is_expired(now: float, ends: float) -> bool:
    """Return whether the absolute lifetime has passed."""
    return now >= ends


def is_idle(now: float, last_seen: float, idle_s: float) -> bool:
    """Return whether there was no request for ``idle_s``; needed only where no store expires sessions."""
    return now - last_seen >= idle_s


def is_refresh_due(now: float, last_seen: float, idle_s: float) -> bool:
    """Return whether this request postpones the idle expiry.

    Two refreshes are a tenth of ``idle_s`` apart, so a session lives between 0.9 and 1.0 × ``idle_s`` after
    its last request, never longer. A ``last_seen`` in the future, left by a clock that was corrected, is
    replaced too.
    """
    return abs(now - last_seen) * MAX_REFRESHES >= idle_s


def store_ttl_s(now: float, ends: float, idle_s: float) -> float:
    """The lifetime to write to the store: the idle time, cut off at the absolute end."""
    return max(0.001, min(idle_s, ends - now))
