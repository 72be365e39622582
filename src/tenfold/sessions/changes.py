"""What one request wants of a session, so that it can be applied to whatever is kept by then. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tenfold.sessions import tokens
from tenfold.sessions.record import FORMAT, Record, decode_value, encode_value

Function = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Edit:
    """What happens to one key: what it starts from, and functions of that.

    Attributes:
        replaces: whether it starts from ``value`` and not from what is kept.
        value: encoded; None where the key goes.
        functions: each with its encoded default.
    """

    replaces: bool = False
    value: bytes | None = None
    functions: tuple[tuple[Function, bytes], ...] = ()

    def followed_by(self, function: Function, default: bytes) -> Edit:
        return Edit(self.replaces, self.value, (*self.functions, (function, default)))

    def applied(self, key: str, kept: bytes | msgspec.Raw | None) -> bytes | msgspec.Raw | None:
        value = self.value if self.replaces else kept
        for function, default in self.functions:
            # Decoded anew each time: a function may well change what it is given.
            value = encode_value(key, function(decode_value(default if value is None else value)))
        return value


@dataclass(slots=True)
class Changes:
    """All that one save does.

    Attributes:
        edits: by key.
        handle: of the session that begins, where none is kept.
        secret: a new one; empty when the present one stays.
        principal: who logs in, if somebody does.
        device: the label of the login.
    """

    edits: Mapping[str, Edit] = field(default_factory=dict)
    handle: str = ""
    secret: str = field(default="", repr=False)
    principal: str | None = None
    device: str = ""


def apply(record: Record | None, changes: Changes, *, now: float, absolute_s: float) -> Record:
    """The record after the changes: keys that they do not name stay as they are."""
    now = round(now, 3)
    fields: dict[str, Any] = {"seen": now, "data": _edited(record.data if record else {}, changes.edits)}
    if changes.secret:
        fields |= {"digest": tokens.digest(changes.secret), "rotated": now}
    if record is None or changes.principal is not None:
        fields |= {"created": now, "ends": now + absolute_s}
    if changes.principal is not None:
        fields |= {"principal": changes.principal, "device": changes.device}
    return msgspec.structs.replace(record, **fields) if record else Record(format=FORMAT, **fields)


def _edited(data: Mapping[str, msgspec.Raw], edits: Mapping[str, Edit]) -> dict[str, msgspec.Raw]:
    edited = dict(data)
    for key, edit in edits.items():
        value = edit.applied(key, edited.get(key))
        if value is None:
            edited.pop(key, None)
        else:
            edited[key] = msgspec.Raw(value)
    return edited
