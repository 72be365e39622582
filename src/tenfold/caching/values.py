"""Encoding of cached values by their type annotation. Pure; never pickle.

Pydantic models go through pydantic's TypeAdapter, all else through msgspec's MessagePack. A value that does
not come back as it was (a subclass with more fields, an excluded field, a NaN inside a model) is not stored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import typing
import zlib
from collections.abc import Callable, Collection
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from tenfold.caching.keys import field_names, plain_type, union_members
from tenfold.errors import SettingsError

__all__ = ["Codec", "UnstorableError"]

COMPRESS_FROM_BYTES = 4096
_PLAIN, _COMPRESSED = b"\x00", b"\x01"
_IMMUTABLE: set[Any] = {
    type(None), bool, int, float, str, bytes, Decimal, UUID, datetime, date, time, timedelta,
}  # fmt: skip


class UnstorableError(Exception):
    """A value that cannot be encoded, or would come back as another one; the caller gets it all the same."""


class Codec:
    """Encodes and decodes the values of one annotation.

    Args:
        annotation: of a function's return value; Any stands for builtins, which come back as such or not at
            all.
        name: of the function, for errors.
        max_bytes: larger values are not stored; the limit holds for the decoded size as well.

    Raises:
        SettingsError: values of that type cannot be cached; the message says what to return instead.
    """

    def __init__(self, annotation: Any, *, name: str, max_bytes: int = 1_000_000) -> None:
        if annotation is not Any:
            _check_annotation(annotation, name)
        self._max_bytes = max_bytes
        self._encode, self._decode, schema = _backend(annotation, name)
        self.is_immutable = is_immutable(annotation)
        self.schema = hashlib.blake2b(schema.encode(), digest_size=4).hexdigest()

    def encode(self, value: Any) -> bytes:
        """Encode a value.

        Raises:
            UnstorableError: it is too large, does not encode, or would not come back as it was.
        """
        try:
            data = self._encode(value)
            again = self._decode(data)
        except Exception as error:  # a serializer of the user's own may raise anything
            raise UnstorableError(f"it does not encode: {error}") from None
        if len(data) > self._max_bytes:
            raise UnstorableError(f"it has {len(data):,} bytes, more than max_value_bytes")
        if not self.is_same(value, again):
            raise UnstorableError("it would not come back as it was: return what the annotation says")
        if len(data) >= COMPRESS_FROM_BYTES and len(packed := zlib.compress(data, 1)) < 0.9 * len(data):
            return _COMPRESSED + packed
        return _PLAIN + data

    @staticmethod
    def is_same(value: Any, other: Any) -> bool:
        """Compare two values with their types."""
        return _is_same(value, other)

    def decode(self, data: bytes) -> Any:
        """Decode what :meth:`encode` made.

        Raises:
            UnstorableError: it is of another format or type.
        """
        try:
            if data[:1] == _COMPRESSED:
                unpacker = zlib.decompressobj()
                plain = unpacker.decompress(data[1:], self._max_bytes)
                if not unpacker.eof:
                    raise UnstorableError("it is larger than max_value_bytes")
                return self._decode(plain)
            return self._decode(memoryview(data)[1:])
        except UnstorableError:
            raise
        except Exception as error:
            raise UnstorableError(f"it does not decode: {error}") from None


def _is_same(value: Any, again: Any) -> bool:
    """Compare with types: ``==`` takes True for 1 and no NaN for another, and a str subclass for its text."""
    if type(value) is not type(again):
        return False
    if isinstance(value, float):
        return value == again or (math.isnan(value) and math.isnan(again))
    if isinstance(value, (list, tuple)):
        return len(value) == len(again) and all(map(_is_same, value, again))
    if isinstance(value, dict):
        return len(value) == len(again) and all(
            _is_same(key, other) and _is_same(item, again[other])
            for (key, item), other in zip(value.items(), again, strict=True)
        )
    if (fields := field_names(type(value))) is not None:
        extra = ("__pydantic_extra__", "__pydantic_private__")
        return all(
            _is_same(getattr(value, name, None), getattr(again, name, None)) for name in (*fields, *extra)
        )
    return bool(value == again)


def _backend(annotation: Any, name: str) -> tuple[Callable[[Any], bytes], Callable[[Any], Any], str]:
    if _has_pydantic(annotation):
        return _pydantic_backend(annotation, name)
    try:
        decoder = msgspec.msgpack.Decoder(annotation)
        schema = repr(msgspec.inspect.type_info(annotation))
        if "CustomType(" in schema:
            raise TypeError(f"{annotation} has values that MessagePack does not know")
    except (TypeError, NameError) as error:
        raise SettingsError(
            f"what {name} returns cannot be cached ({error}): return builtins, a dataclass, a msgspec "
            "struct or "
            "a pydantic model"
        ) from None
    return msgspec.msgpack.Encoder().encode, decoder.decode, schema


def _pydantic_backend(annotation: Any, name: str) -> tuple[Callable[[Any], bytes], Callable[[Any], Any], str]:
    from pydantic import TypeAdapter

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except Exception as error:  # pydantic has a dozen kinds of them
        raise SettingsError(f"what {name} returns cannot be cached: {error}") from None
    serializer, validator = adapter.serializer, adapter.validator

    def encode(value: Any) -> bytes:
        return serializer.to_json(value, round_trip=True, by_alias=False, warnings="error")

    def decode(data: Any) -> Any:
        return validator.validate_json(bytes(data), by_alias=False, by_name=True)

    return encode, decode, repr(adapter.core_schema if not _models(annotation) else _schema_text(adapter))


def _schema_text(adapter: Any) -> str:
    try:
        return msgspec.json.encode(adapter.json_schema(mode="serialization"), order="sorted").decode()
    except Exception:  # a type of the user's own without a JSON schema
        return str(adapter)


def _models(annotation: Any) -> list[type]:
    """The pydantic models that an annotation names."""
    found: list[type] = []
    for member in union_members(annotation):
        if hasattr(member, "__pydantic_fields__") or hasattr(member, "__pydantic_validator__"):
            found.append(member)
        for argument in typing.get_args(member):
            found += _models(argument)
    return found


def _has_pydantic(annotation: Any) -> bool:
    return bool(_models(annotation)) or _has_pydantic_field(annotation, set())


def _has_pydantic_field(annotation: Any, visited: set[Any]) -> bool:
    """Return whether a dataclass or typed dict within the annotation has a field of a pydantic model."""
    for member in union_members(annotation):
        kind = typing.get_origin(member) or member
        if any(_has_pydantic_field(argument, visited) for argument in typing.get_args(member)):
            return True
        if not isinstance(kind, type) or kind in visited:
            continue
        visited.add(kind)
        if (dataclasses.is_dataclass(kind) or typing.is_typeddict(kind)) and any(
            _models(hint) or _has_pydantic_field(hint, visited)
            for hint in typing.get_type_hints(kind, include_extras=True).values()
        ):
            return True
    return False


# ------------------------------------------------------------------ what is refused


def _check_annotation(annotation: Any, name: str) -> None:
    for member in _all_members(annotation):
        if member in (Any, object):
            raise SettingsError(
                f"{name} returns {member!r}, which says nothing of its values: name their type, such as "
                "dict[str, int] or a pydantic model"
            )
        kind = typing.get_origin(member) or member
        if not isinstance(kind, type):
            continue
        bases = {(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__}
        if hasattr(kind, "__mapper__") or hasattr(kind, "_sa_registry") or hasattr(kind, "__table__"):
            raise SettingsError(
                f"{name} returns the ORM entity {kind.__qualname__}, which belongs to its session: return a "
                "pydantic model, a dataclass or a struct made from it"
            )
        if bases & {("sqlalchemy", each) for each in ("Row", "RowMapping", "Result", "ScalarResult")}:
            raise SettingsError(
                f"{name} returns SQLAlchemy's {kind.__name__}, which belongs to its statement: return "
                "tuples, "
                "dicts or a pydantic model made from it"
            )
        if hasattr(kind, "__await__") or issubclass(kind, (typing.Iterator, typing.AsyncIterator)):
            raise SettingsError(
                f"{name} returns {kind.__qualname__}, which can be consumed only once: return a list, and "
                "write "
                "`async def` where it has to be awaited"
            )


def _all_members(annotation: Any) -> list[Any]:
    """The annotation's members and theirs, except for the values inside of a bare or Any-valued dict."""
    found = []
    for member in union_members(annotation):
        found.append(member)
        found += [
            inner
            for argument in typing.get_args(member)
            if argument is not Ellipsis
            and not isinstance(argument, (str, int, bytes, bool))
            and not (argument is Any and typing.get_origin(member) in (dict, list, tuple))
            for inner in _all_members(argument)
        ]
    return found


def is_immutable(annotation: Any) -> bool:
    """Return whether callers can share one value of an annotation without seeing each other's changes."""
    return all(_is_immutable_member(member, ()) for member in union_members(annotation))


def _is_immutable_member(annotation: Any, outer: Collection[Any]) -> bool:
    annotation = plain_type(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _IMMUTABLE or annotation is None or origin is typing.Literal or annotation in outer:
        return True
    if (members := union_members(annotation)) != (annotation,):
        return all(_is_immutable_member(member, outer) for member in members)
    if origin in (tuple, frozenset):
        return all(_is_immutable_member(each, outer) for each in arguments if each is not Ellipsis)
    if not isinstance(annotation, type):
        return False
    if issubclass(annotation, Enum):
        return True
    parameters = getattr(annotation, "__dataclass_params__", None) or getattr(
        annotation, "__struct_config__", None
    )
    config = getattr(annotation, "model_config", None) or {}
    if not (getattr(parameters, "frozen", False) or config.get("frozen")) or config.get("extra") == "allow":
        return False
    hints = typing.get_type_hints(annotation, include_extras=True)
    return all(
        _is_immutable_member(hint, (*outer, annotation))
        for hint in hints.values()
        if typing.get_origin(plain_type(hint)) is not typing.ClassVar
    )
