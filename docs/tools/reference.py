"""The generated pages: settings, metrics and the API, as Markdown."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from tenfold import schema
from tenfold.metrics import Metric
from tenfold.settings import PREFIX

# The key of a limit in a JSON schema, and how the page writes it.
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LENGTHS = {"minItems": "at least", "maxItems": "at most"}
TYPES = {"integer": "integer", "number": "float", "boolean": "boolean", "string": "string"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells may hold any text."""
    lines = [header, ["---"] * len(header), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("&lt;br>", "<br>")


def settings_page(model: type[BaseModel]) -> str:
    """Every table and key of ``model``: variable, type, limits, default and description."""
    tables = [(), *(path for path in schema.keys(model) if schema.is_table(schema.annotation(model, path)))]
    intro = (
        "# Settings\n\nEvery key of `tenfold.toml`. The variable beside a key overrides the file; in it, "
        "lists and tables are written as TOML. `tenfold init` writes a commented file with all of them.\n"
    )
    sections = [_section(model if not path else schema.annotation(model, path), path) for path in tables]
    for path in schema.keys(model):  # tables that users name themselves
        kinds = [one for one in get_args(schema.annotation(model, path)) if schema.is_table(one)]
        sections += [_section(kind, (*path, '"…"')) for kind in kinds]
    return "\n".join([intro, *filter(None, sections)])


def _section(model: type[BaseModel], path: schema.KeyPath) -> str:
    described = model.model_json_schema()
    keys = [(name, described["properties"][name]) for name in _own_keys(model)]
    if not keys:
        return ""
    header = ("key", "type", "default", "what it is")
    rows = table(header, (_row((*path, name), key, described.get("$defs", {})) for name, key in keys))
    text = inspect.cleandoc(model.__doc__ or "").replace("``", "`")
    return f"## [{'.'.join(path)}]\n\n{text}\n\n{rows}"


def _own_keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if not field.exclude and not schema.is_table(field.annotation):
            yield name


def _row(path: schema.KeyPath, key: Mapping[str, Any], named: Mapping[str, Any]) -> tuple[str, str, str, str]:
    default = json.dumps(key["default"], ensure_ascii=False) if key.get("default") is not None else ""
    examples = "; ".join(f"`{json.dumps(one, ensure_ascii=False)}`" for one in key.get("examples", ()))
    text = [key.get("description", ""), f"for example {examples}" if examples else ""]
    text.append(f"`{PREFIX}{'__'.join(path).upper()}`")
    return (
        f"`{path[-1]}`",
        _type(key, named),
        f"`{default}`" if default else "–",
        "<br>".join(filter(None, text)),
    )


def _type(key: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """The type and the limits of a key, in the words of TOML."""
    if "$ref" in key:
        return _type(named[key["$ref"].rpartition("/")[2]], named)
    if "anyOf" in key:
        return " or ".join(_type(one, named) for one in key["anyOf"] if one.get("type") != "null")
    if "enum" in key or "const" in key:
        return ", ".join(f"`{json.dumps(value)}`" for value in key.get("enum", [key.get("const")]))
    limits = [f"{sign} {key[name]}" for name, sign in LIMITS.items() if name in key]
    if key.get("type") == "array":
        kind = f"list of {_type(key.get('items', {}), named) or 'values'}"
        limits = [f"{words} {key[name]}" for name, words in LENGTHS.items() if name in key]
    elif key.get("type") == "object":
        values = key.get("additionalProperties") or {}
        kind = "table" if "properties" in key else f"table of {_type(values, named) or 'values'}"
    else:
        kind = "path" if key.get("format") == "path" else TYPES.get(key.get("type", ""), "")
    return ", ".join([kind, *limits])


def metrics_page(metrics: Sequence[Metric]) -> str:
    """Every exported metric: name, type, labels and help."""
    rows = (
        (f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels) or "–", one.help)
        for one in sorted(metrics, key=lambda one: one.name)
    )
    return "# Metrics\n\nWhat `/metrics` answers, for this machine only.\n\n" + table(
        ("name", "type", "labels", "what it is"), rows
    )


def api_pages(modules: Iterable[str]) -> dict[str, str]:
    """One page for each package directly below ``tenfold``, by name, with every module that exports names."""
    pages: dict[str, list[str]] = {}
    for module in sorted(modules):
        pages.setdefault(module.split(".")[1], []).append(module)
    return {
        name: f"# {name}\n\n" + "\n".join(f"::: {module}\n" for module in found)
        for name, found in pages.items()
    }
