"""The two files that ``tenfold init`` writes, rendered from the settings' descriptions and defaults. Pure."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath, PurePosixPath
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tenfold.schema import is_table
from tenfold.types import File

_HEADER = """\
# Settings of tenfold. A commented key shows its default, unless the comment above it ends in "for example".
# Environment variables override this file: TENFOLD_STACK__REPLICAS=2 sets replicas in [stack].
"""
MOST_TASKS = 20
_LIMITS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}


def settings_file(model: type[BaseModel], values: Mapping[str, Mapping[str, Any]]) -> File:
    """Render tenfold.toml with every key of ``model``: those in ``values`` set, all others as comments."""
    lines = [_HEADER, *_tables(model, values, ())]
    return File(PurePosixPath("tenfold.toml"), "\n".join(lines).rstrip() + "\n")


def _tables(model: type[BaseModel], values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    tables = {name: field for name, field in model.model_fields.items() if is_table(field.annotation)}
    for name, field in model.model_fields.items():
        if name not in tables and not field.exclude:
            yield from _key(name, field, values)
    for name, field in tables.items():
        yield f"[{'.'.join((*path, name))}]"
        assert is_table(field.annotation)
        yield from _tables(field.annotation, values.get(name, {}), (*path, name))


def _key(name: str, field: FieldInfo, values: Mapping[str, Any]) -> Iterator[str]:
    example = field.get_default(call_default_factory=True)
    limits = ", ".join(_limits(field))
    text = f"{field.description} ({limits})" if limits else f"{field.description}"
    if field.examples and name not in values and example in (None, "", {}, ()):
        example, text = field.examples[0], f"{text}; for example"
    yield textwrap.fill(text, 100, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
    yield f"{name} = {_toml(values[name])}" if name in values else f"# {name} = {_toml(example)}"
    yield ""


def _limits(field: FieldInfo) -> Iterator[str]:
    for limit in field.metadata:
        for name, words in _LIMITS.items():
            if (bound := getattr(limit, name, None)) is not None:
                yield words.format(f"{bound:g}" if isinstance(bound, float) else bound)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(str(name))} = {_toml(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON's strings, numbers and booleans are TOML's, except for surrogate pairs and a bare DEL.
    text = json.dumps(str(value) if isinstance(value, PurePath) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


_SCENARIO = '''\
"""The users' behaviour: tenfold and Locust both run this file unchanged."""

from locust import FastHttpUser, between, task


class Visitor(FastHttpUser):
    wait_time = between(1, 3)  # for Locust; tenfold schedules the arrivals itself

    # def on_start(self) -> None:
    #     token = self.client.post("/login", json={{"name": "me", "password": "…"}}).json()["token"]
    #     self.client.auth_header = f"Bearer {{token}}"
{tasks}'''
_TASK = """
    @task
    def {name}(self) -> None:
        self.client.get({path})
"""


def scenario_file(path: PurePosixPath, routes: Iterable[str]) -> File:
    """Render a locustfile that requests the given paths, or ``/`` where none is known."""
    tasks: list[str] = []
    names: set[str] = set()
    for route in list(dict.fromkeys(routes))[:MOST_TASKS] or ["/"]:
        # The prefix keeps it apart from Python's keywords and a Locust user's `tasks`, `host`, `stop` …
        name = f"get_{re.sub(r'[^0-9a-zA-Z]+', '_', route).strip('_').lower() or 'home'}"
        while name in names:
            name += "_"
        names.add(name)
        tasks.append(_TASK.format(name=name, path=repr(route)))
    return File(path, _SCENARIO.format(tasks="".join(tasks)))
