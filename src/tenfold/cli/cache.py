"""``tenfold cache``: what a service's query cache does, and ways to step in."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli.console import console, to_json
from tenfold.errors import SettingsError, TargetError

if TYPE_CHECKING:
    from tenfold.caching.redis import RedisServer

_ACTIONS = ("stats", "invalidate", "explain")
_TOKEN_S = 900  # in which loads for these tags come from the primary: no position is known here


def cache(
    action: Annotated[str, typer.Argument(metavar="|".join(_ACTIONS), help="What to do.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Tags; or module:function and its arguments as name=value.",
            show_default=False,
        ),
    ] = None,
    redis: Annotated[str, typer.Option(metavar="URL", help="Default: $REDIS_URL.", show_default=False)] = "",
    prefix: Annotated[str, typer.Option(help="The cache's prefix=.")] = "tenfold:cache:",
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON only.")] = False,
) -> int:
    """Show what a service's query cache does, invalidate tags, or explain how a call is cached.

    stats sums the lookups of the last day over all processes; each adds its own every five seconds.
    """
    if action == "explain":
        facts = _explain(names or [])
        typer.echo(
            to_json(facts) if as_json else "\n".join(f"{name:<13}{_text(facts[name])}" for name in facts)
        )
        return 0
    if action not in _ACTIONS:
        raise SettingsError(f"no action {action[:40]!r}: write one of {', '.join(_ACTIONS)}")
    from tenfold.caching.redis import RedisServer

    url = redis or os.environ.get("REDIS_URL", "")
    if not url:
        raise SettingsError("no Redis is named: write --redis URL, or set REDIS_URL")
    server = RedisServer(url, timeout_s=2.0)
    try:
        return (_stats if action == "stats" else _invalidate)(server, prefix, names or [], as_json)
    finally:
        server.close()


# ------------------------------------------------------------------ stats


def _stats(server: RedisServer, prefix: str, names: list[str], as_json: bool) -> int:
    if names:
        raise SettingsError("stats takes no names: write `tenfold cache stats`")
    (reply,) = _execute(server, [("HGETALL", f"{prefix}counts")])
    found = by_function(_pairs(reply))
    if as_json:
        typer.echo(to_json(found))
    elif not found:
        typer.echo(f"No process has counted anything under {prefix} in the last day.")
    else:
        console().print(_table(found))
    return 0


def _pairs(reply: Any) -> Mapping[bytes, bytes]:
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def by_function(counts: Mapping[bytes, bytes]) -> dict[str, dict[str, int]]:
    """The counts of ``outcome function`` as a table of functions, most lookups first."""
    found: dict[str, dict[str, int]] = {}
    for label, count in counts.items():
        outcome, _, function = label.decode(errors="replace").partition(" ")
        found.setdefault(function, {})[outcome] = int(count)
    return dict(sorted(found.items(), key=lambda item: (-sum(item[1].values()), item[0])))


def _table(found: Mapping[str, Mapping[str, int]]) -> Any:
    from rich.table import Table

    from tenfold.caching.counts import HITS

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("function", overflow="fold", ratio=1)
    for title in ("hits", "loads", "hit rate", "errors", "unstored", "stale"):
        table.add_column(title, justify="right", no_wrap=True)
    for function, counts in found.items():
        hits = sum(counts.get(outcome, 0) for outcome in HITS)
        loads, errors = counts.get("load", 0), counts.get("error", 0)
        rate = f"{hits / (hits + loads + errors):.1%}" if hits + loads + errors else "–"
        rest = (errors, counts.get("unstored", 0), counts.get("stale", 0))
        table.add_row(
            function, f"{hits:,}", f"{loads:,}", rate, *(f"{each:,}" if each else "–" for each in rest)
        )
    return table


# ------------------------------------------------------------------ invalidate


def _invalidate(server: RedisServer, prefix: str, names: list[str], as_json: bool) -> int:
    from tenfold.caching.entry import Tag, check_tag
    from tenfold.caching.function import MAX_TTL
    from tenfold.caching.stores import RedisStore, new_generation
    from tenfold.positions import Token

    if not names:
        raise SettingsError("no tag is named: write `tenfold cache invalidate products`")
    token = Token.unsure(expires_at=int(time.time()) + _TOKEN_S)
    tags = {check_tag(name): Tag(new_generation(), token) for name in names}
    _execute(server, RedisStore(prefix, tag_ttl=MAX_TTL).renewal(tags))
    typer.echo(to_json({"invalidated": list(tags)}) if as_json else f"✔ invalidated {', '.join(tags)}")
    return 0


def _execute(server: RedisServer, commands: Any) -> list[Any]:
    from tenfold.caching.stores import StoreDownError

    try:
        return server.execute(commands)
    except StoreDownError as error:
        raise TargetError(f"Redis does not answer ({error}): check --redis, and whether it runs") from None


# ------------------------------------------------------------------ explain


def _explain(names: list[str]) -> dict[str, Any]:
    if not names:
        raise SettingsError(
            "no function is named: write `tenfold cache explain shop.queries:popular limit=10`"
        )
    target, *pairs = names
    module, colon, name = target.partition(":")
    if not colon:
        raise SettingsError(f"{target!r} is no function: write module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(import_module(module), name)
    except ImportError as error:
        raise SettingsError(f"{module} cannot be imported: {error}") from None
    except AttributeError:
        raise SettingsError(f"{module} has no {name}") from None
    owner = getattr(function, "__tenfold_cache__", None)
    if owner is None:
        raise SettingsError(f"{target} is not cached: decorate it with @cache.query")
    try:
        facts: dict[str, Any] = owner.explain(function, **dict(map(_argument, pairs)))
    except TypeError as error:
        parameters = ", ".join(inspect.signature(function).parameters)
        raise SettingsError(f"{error}: {target} takes {parameters}") from None
    return facts


def _argument(pair: str) -> tuple[str, Any]:
    """``name=value``, where the value is JSON or else a text."""
    name, equals, value = pair.partition("=")
    if not equals:
        raise SettingsError(f"{pair!r} is no argument: write name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "–"
    return (
        {None: "–", True: "yes", False: "no"}.get(value, str(value)) if not isinstance(value, str) else value
    )
