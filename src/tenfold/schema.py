"""The keys of a settings model, and validation errors as one sentence.

For any tree of pydantic models in which every table is a model.
A *key path* is the tuple of names that leads to a key: ``("stack", "replicas")``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tenfold.redaction import has_password

KeyPath = tuple[str, ...]

_SECRET = re.compile(r"password|passwd|secret|token|url|credential|_key|apikey", re.IGNORECASE)


def is_table(annotation: object) -> TypeGuard[type[BaseModel]]:
    """Return whether a key of this type is a table of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def is_mapping(annotation: object) -> bool:
    """Return whether a key of this type is a table whose names the user chooses."""
    return get_origin(annotation) is dict


def keys(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """Every table and key of a model, parents before children, without excluded fields."""
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        yield (*prefix, name)
        if is_table(field.annotation):
            yield from keys(field.annotation, (*prefix, name))


def annotation(model: type[BaseModel], path: Sequence[str]) -> Any:
    """The type of a key; None for one that does not exist."""
    node: Any = model
    for part in path:
        if is_table(node):
            field = node.model_fields.get(part)
            node = field.annotation if field else None
        else:
            node = get_args(node)[1] if is_mapping(node) else None
    return node


def sentence(
    error: ValidationError,
    model: type[BaseModel],
    *,
    source: str,
    variables: Mapping[KeyPath, str],
    prefix: str,
) -> str:
    """One sentence about the first key that was refused, and the number of further ones.

    ``source`` is where the tables were read from, ``variables`` names the environment variable of each key
    that came from one, ``prefix`` begins such names. The value of a key that looks secret is left out.
    """
    details = error.errors(include_url=False)
    first = details[0]
    path = tuple(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        # An unknown table that came from a variable is better named by that variable's whole path.
        path = next((key for key in variables if key[: len(path)] == path), path)
        text = unknown_key(model, path, prefix=prefix if path in variables else None)
    else:
        text = _refused_value(model, path, first)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return _printable(f"{variables.get(path, source)}: {text}{more}")


def _printable(text: str) -> str:
    """Escape line breaks and terminal codes: keys and values come from a file."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def unknown_key(model: type[BaseModel], path: KeyPath, *, prefix: str | None = None) -> str:
    """A sentence about an unknown key and the nearest valid one, as a variable where ``prefix`` is given."""
    known = list(keys(model))
    siblings = [key for key in known if key[:-1] == path[:-1]]
    near = (
        _closest(path, siblings)
        or next((key for key in known if key[-1] == path[-1]), None)
        or (None if siblings else _closest(path, known))
    )
    name = ".".join(path)
    if near:
        meant = ".".join(near) if prefix is None else prefix + "__".join(near).upper()
        return f"unknown key {name}; did you mean {meant}?"
    table = f"[{'.'.join(path[:-1])}]" if path[:-1] else "the file"
    return f"unknown key {name}; {table} can hold {', '.join(key[-1] for key in siblings) or 'no tables'}"


def _closest(path: KeyPath, known: Sequence[KeyPath]) -> KeyPath | None:
    """The most similar key: by its last name within a table, by its whole path across tables."""
    shared = bool(known) and all(key[:-1] == path[:-1] for key in known)
    by_name = {key[-1] if shared else ".".join(key): key for key in known}
    near = difflib.get_close_matches(path[-1] if shared else ".".join(path), by_name, n=1, cutoff=0.7)
    return by_name[near[0]] if near else None


def _refused_value(model: type[BaseModel], path: KeyPath, detail: ErrorDetails) -> str:
    own_words = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
    if own_words and is_table(annotation(model, path)):
        return own_words
    key, value = ".".join(path), _displayed(model, path, detail["input"])
    expected = own_words or f"it has to be {_expected(detail)}"
    return f"{key} is {value}; {expected}" if value else f"{key} cannot be accepted; {expected}"


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text in quotation marks",
    "dict_type": "a table",
    "model_type": "a table",
    "tuple_type": "a list",
    "list_type": "a list",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}


def _expected(detail: ErrorDetails) -> str:
    fallback = detail["msg"].removeprefix("Input should be ").rstrip(".")
    limits = {
        name: int(limit) if isinstance(limit, float) and limit.is_integer() else limit
        for name, limit in detail.get("ctx", {}).items()
    }
    return _EXPECTED[detail["type"]].format_map(limits) if detail["type"] in _EXPECTED else fallback


def _displayed(model: type[BaseModel], path: KeyPath, value: object) -> str:
    """The value as TOML writes it, shortened; empty where it may be a secret."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    in_mapping = any(is_mapping(annotation(model, path[:depth])) for depth in range(1, len(path) + 1))
    if in_mapping or _SECRET.search(path[-1]) or has_password(text):
        return ""
    if isinstance(value, dict):
        return "a table"
    return text if len(text) <= 60 else f"{text[:57]}…"
