"""The variables that the app is started with. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from tenfold.errors import SettingsError

# Other braces are none of our business: a variable may hold JSON.
_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_DATABASE = {f"database_{part}" for part in ("url", "host", "port", "user", "password", "name")}
_TABLE = dict.fromkeys((*_DATABASE, "replica_urls"), "database") | {"redis_url": "redis"}
_VARIABLES = {
    "database_url": "DATABASE_URL",
    "replica_urls": "DATABASE_REPLICA_URLS",
    "redis_url": "REDIS_URL",
}


def merged(offers: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """All placeholders; what several servers offer under one name is joined by commas."""
    found: dict[str, str] = {}
    for offer in offers:
        for name, value in offer.items():
            found[name] = f"{found[name]},{value}" if name in found else value
    if "database_url" in found:
        found.setdefault("replica_urls", "")
    return found


def standard(offers: Mapping[str, str]) -> dict[str, str]:
    """The variables that every app gets: each offered address under its usual name.

    DATABASE_URL, DATABASE_REPLICA_URLS and REDIS_URL; any other ``…_url`` in capitals.
    """
    return {
        _VARIABLES.get(name, name.upper()): value
        for name, value in offers.items()
        if name in _VARIABLES or name.endswith("_url")
    }


def filled(template: Mapping[str, str], offers: Mapping[str, str]) -> dict[str, str]:
    """``template`` with its placeholders filled in.

    Raises:
        SettingsError: a placeholder is unknown, or belongs to a server that the stack does not have.
    """
    return {key: _fill(key, text, offers) for key, text in template.items()}


def _fill(key: str, text: str, offers: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if (name := match[1]) in offers:
            return offers[name]
        raise SettingsError(f"service.environment.{key}: {_refusal(name, offers)}")

    return _PLACEHOLDER.sub(value, text)


def _refusal(name: str, offers: Mapping[str, str]) -> str:
    if server := _TABLE.get(name):
        return f"{{{name}}} needs [stack] {server} = true"
    near = difflib.get_close_matches(name, {*offers, *_TABLE}, n=1)
    names = ", ".join(f"{{{known}}}" for known in sorted(offers)) or "there are none in this stack"
    return f"there is no {{{name}}}; " + (f"did you mean {{{near[0]}}}?" if near else f"known: {names}")
