"""Cache keys: a call's arguments, bound by the signature, canonical and typed. Pure.

Each value is written with its type and, where it is text, with its length, so that ``1``, ``True``, ``1.0``
and ``"1"`` give four keys and no two calls with different arguments give one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import types
import typing
from collections import abc
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

from tenfold.errors import SettingsError

__all__ = ["CallKey", "UnkeyableError", "annotations_of", "encode_key", "plain_type", "shorten"]

MAX_KEY_CHARS = 200

_IGNORED = (
    {
        ("sqlalchemy", name)
        for name in (
            "Session",
            "AsyncSession",
            "Connection",
            "AsyncConnection",
            "Engine",
            "AsyncEngine",
            "scoped_session",
            "async_scoped_session",
            "sessionmaker",
            "async_sessionmaker",
        )
    }
    | {("starlette", name) for name in ("HTTPConnection", "Response", "BackgroundTasks")}
    | {
        ("django", "HttpRequest"),
        ("django", "HttpResponseBase"),
        ("werkzeug", "Request"),
        ("werkzeug", "Response"),
    }
)
_SEQUENCES = {list, tuple, set, frozenset, abc.Sequence, abc.Set, abc.Collection}
_MAPPINGS = {dict, abc.Mapping}


class UnkeyableError(TypeError):
    """A value that cannot be written into a key; the call is made without the cache."""


# ------------------------------------------------------------------ values


def encode_key(value: object) -> str:
    """Write a value so that no other one gives the same text.

    Raises:
        UnkeyableError: it is of a type without a canonical text, or refers to itself.
    """
    if (writer := _WRITERS.get(type(value))) is not None:
        return writer(value)
    return _encode_object(value)


def _text(value: str) -> str:
    return f"s{len(value)}:{value}"


def _items(values: Iterable[object]) -> str:
    return ",".join(map(encode_key, values))


def _moment(value: datetime | time) -> str:
    return f"t{value.isoformat()}/{value.fold}/{value.tzinfo}"


_WRITERS: dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "N",
    bool: lambda value: "T" if value else "F",
    int: lambda value: f"i{value}",
    str: _text,
    float: lambda value: f"f{value!r}",
    bytes: lambda value: "b" + value.hex(),
    Decimal: lambda value: f"d{value}",
    UUID: lambda value: "u" + value.hex,
    datetime: _moment,
    time: lambda value: "h" + _moment(value),
    date: lambda value: f"D{value.isoformat()}",
    timedelta: lambda value: f"p{value.days},{value.seconds},{value.microseconds}",
    list: lambda value: f"[{_items(value)}]",
    tuple: lambda value: f"({_items(value)})",
    set: lambda value: "{" + ",".join(sorted(map(encode_key, value))) + "}",
    frozenset: lambda value: "F{" + ",".join(sorted(map(encode_key, value))) + "}",
    dict: lambda value: (
        "m{" + ",".join(sorted(f"{encode_key(key)}={encode_key(item)}" for key, item in value.items())) + "}"
    ),
}


def _encode_object(value: Any) -> str:
    kind = type(value)
    name = _text(f"{kind.__module__}.{kind.__qualname__}")
    if isinstance(value, Enum):
        return f"e{name}{_text(value.name or repr(value.value))}"
    if (fields := field_names(kind)) is not None:
        extra = getattr(value, "__pydantic_extra__", None) or {}
        return f"o{name}({_items(getattr(value, field) for field in fields)}{encode_key(extra)})"
    for base in (bool, int, str, float, bytes, UUID, Decimal, datetime, date):
        if isinstance(value, base) and not hasattr(value, "__dict__"):
            return f"o{name}{_WRITERS[base](value)}"
    raise UnkeyableError(f"cannot be part of a cache key ({kind.__qualname__})")


def field_names(kind: type) -> Collection[str] | None:
    """The fields of a dataclass, a pydantic model or a msgspec struct; None for any other class."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    if (fields := getattr(kind, "__struct_fields__", None)) is not None:
        return typing.cast(Collection[str], fields)
    return getattr(kind, "__pydantic_fields__", None)


def shorten(key: str) -> str:
    """Return a key, or its beginning and a digest where it is long or not printable ASCII."""
    if len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable() and " " not in key:
        return key
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=20).hexdigest()
    begin = "".join(character for character in key[:80] if character.isascii() and character.isprintable())
    return f"{begin.replace(' ', '')}#{digest}"


# ------------------------------------------------------------------ calls


class CallKey:
    """Writes the arguments of a function's calls as key text, whichever way they are passed.

    Args:
        function: its parameters have annotations. Those of SQLAlchemy sessions and connections, and of
            requests and responses, are not part of the key.
        ignore: names of further parameters that are not.
        names: for annotations that name what only the function's surroundings know.

    Raises:
        SettingsError: a parameter cannot be part of a key; the message names it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        ignore: Collection[str] = (),
        names: Mapping[str, Any] | None = None,
    ) -> None:
        self.signature = inspect.signature(function)
        parameters = self.signature.parameters
        if unknown := set(ignore) - set(parameters):
            raise SettingsError(f"ignore= names {sorted(unknown)[0]!r}, which {name} has no parameter for")
        hints = annotations_of(function, name, names=names)
        self.ignored = {
            parameter for parameter in parameters if parameter in ignore or is_ignored(hints.get(parameter))
        }
        for parameter in parameters:
            if parameter not in self.ignored:
                _check_keyable(parameter, hints.get(parameter, inspect.Parameter.empty), name)
        self.names = tuple(parameter for parameter in parameters if parameter not in self.ignored)
        kinds = [parameter.kind for parameter in parameters.values()]
        self._is_plain = not {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} & set(kinds)
        self._positional = sum(kind is not inspect.Parameter.KEYWORD_ONLY for kind in kinds)
        self._slots = {
            parameter.name: index
            for index, parameter in enumerate(parameters.values())
            if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY
        }
        self._defaults = [parameter.default for parameter in parameters.values()]
        self._kept = tuple(
            index for index, parameter in enumerate(parameters) if parameter not in self.ignored
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The values of all parameters, in their order.

        Raises:
            TypeError: the arguments do not fit the signature.
        """
        if self._is_plain and len(args) <= self._positional:
            values = list(self._defaults)
            values[: len(args)] = args
            slots = self._slots
            for name, value in kwargs.items():
                index = slots.get(name, -1)
                if index < len(args):  # unknown, or passed twice
                    break
                values[index] = value
            else:
                if not any(value is inspect.Parameter.empty for value in values):
                    return values
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return list(bound.arguments.values())

    def text(self, values: list[Any]) -> str:
        """The key text of bound values.

        Raises:
            UnkeyableError: one of them is of another type than its annotation says, and cannot be keyed.
        """
        writers, parts = _WRITERS, []
        for index in self._kept:
            value = values[index]
            writer = writers.get(type(value))
            parts.append(writer(value) if writer is not None else _encode_object(value))
        return ",".join(parts)

    def arguments(self, values: Sequence[Any]) -> dict[str, Any]:
        """Bound values by the names of their parameters."""
        return dict(zip(self.signature.parameters, values, strict=True))


def annotations_of(
    function: Callable[..., Any], name: str, *, names: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The resolved annotations of a function.

    Args:
        names: what is known where it was defined, besides its module's names.

    Raises:
        SettingsError: one names something that cannot be found at run time.
    """
    try:
        return typing.get_type_hints(function, localns=dict(names or {}), include_extras=True)
    except (NameError, AttributeError, TypeError) as error:
        raise SettingsError(
            f"the annotations of {name} cannot be resolved ({error}): import what they name at run time, "
            "outside of TYPE_CHECKING"
        ) from None


def plain_type(annotation: Any) -> Any:
    """An annotation without ``Annotated``, a type alias or a NewType around it."""
    while True:
        if typing.get_origin(annotation) is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    annotation = plain_type(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for part in typing.get_args(annotation) for member in union_members(part))
    return (annotation,)


def is_ignored(annotation: Any) -> bool:
    """Return whether a parameter is a session, a connection, a request or a response."""
    members = [member for member in union_members(annotation) if member is not type(None)]
    return bool(members) and all(_is_framework_object(member) for member in members)


def _is_framework_object(annotation: Any) -> bool:
    kind = typing.get_origin(annotation) or annotation
    if not isinstance(kind, type):
        return False
    return any((base.__module__.partition(".")[0], base.__name__) in _IGNORED for base in kind.__mro__)


def _check_keyable(parameter: str, annotation: Any, name: str) -> None:
    way_out = f"name it in ignore=[{parameter!r}], or write the key yourself with key="
    if annotation is inspect.Parameter.empty:
        raise SettingsError(f"the parameter {parameter!r} of {name} has no annotation: add one, or {way_out}")
    if not is_keyable(annotation):
        shown = getattr(annotation, "__qualname__", None) or str(annotation)
        raise SettingsError(
            f"the parameter {parameter!r} of {name} is a {shown}, which cannot be part of a cache key: "
            f"{way_out}"
        )


def is_keyable(annotation: Any) -> bool:
    """Return whether all values of an annotation can be part of a key."""
    members = union_members(annotation)
    if len(members) > 1:
        return all(map(is_keyable, members))
    (annotation,) = members
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return True
    kind = origin or annotation
    if kind is None or kind in _WRITERS or kind in _SEQUENCES or kind in _MAPPINGS:
        return all(is_keyable(argument) for argument in arguments if argument is not Ellipsis)
    if not isinstance(kind, type):
        return False
    scalars = (int, str, float, bytes, UUID, Decimal, datetime, date, Enum)
    return issubclass(kind, scalars) or field_names(kind) is not None
