"""The environment variables of the app: standard names and filled placeholders. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from tenfold.errors import SettingsError

# Other braces are left as they are: a variable may hold JSON.
_PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
_DATABASE = {f"database_{part}" for part in ("url", "host", "port", "user", "password", "name")}
_REDIS = {f"redis_{part}" for part in ("url", "host", "port", "password")}
_TABLE = {
    **dict.fromkeys((*_DATABASE, "replica_urls"), "[stack] database = true"),
    **dict.fromkeys(_REDIS, "[stack] redis = true"),
    **dict.fromkeys(("shard_urls", "shard_directory_url"), "[sharding] shards = 2 or more"),
}
_VARIABLES = {
    "database_url": "DATABASE_URL",
    "replica_urls": "DATABASE_REPLICA_URLS",
    "redis_url": "REDIS_URL",
    "shard_urls": "SHARD_URLS",
}


def parse_dotenv(text: str) -> dict[str, str]:
    """Return the variables of a .env file; quotes and comments are removed, nothing is expanded."""
    found = {}
    for line in text.splitlines():
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        if separator and re.fullmatch(r"[A-Za-z_]\w*", name := name.strip()):
            found[name] = _unquote(value.strip())
    return found


def _unquote(value: str) -> str:
    if value[:1] in {'"', "'"}:
        return value[1:].partition(value[0])[0]
    return re.sub(r"(^|\s)#.*", "", value).strip()


def merge_placeholders(servers: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the placeholders of all servers; several values of one name are joined by commas."""
    merged: dict[str, str] = {}
    for placeholders in servers:
        for name, value in placeholders.items():
            merged[name] = f"{merged[name]},{value}" if name in merged else value
    if "database_url" in merged:
        merged.setdefault("replica_urls", "")
        if "shard_urls" in merged:
            merged["shard_directory_url"] = merged["database_url"]
    return merged


def standard_variables(placeholders: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that every app gets: each server address under its usual name.

    DATABASE_URL, DATABASE_REPLICA_URLS, REDIS_URL and SHARD_URLS; any other ``…_url`` in capitals.
    """
    return {
        _VARIABLES.get(name, name.upper()): value
        for name, value in placeholders.items()
        if name in _VARIABLES or name.endswith("_url")
    }


def fill_placeholders(template: Mapping[str, str], placeholders: Mapping[str, str]) -> dict[str, str]:
    """Return ``template`` with the placeholders in its values filled in.

    Raises:
        SettingsError: a placeholder is unknown, or belongs to a server that the stack does not have.
    """
    return {key: _fill(key, text, placeholders) for key, text in template.items()}


def _fill(key: str, text: str, placeholders: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if (name := match[1]) in placeholders:
            return placeholders[name]
        raise SettingsError(f"service.environment.{key}: {_refusal(name, placeholders)}")

    return _PLACEHOLDER.sub(value, text)


def _refusal(name: str, placeholders: Mapping[str, str]) -> str:
    if server := _TABLE.get(name):
        return f"{{{name}}} needs {server}"
    near = difflib.get_close_matches(name, {*placeholders, *_TABLE}, n=1)
    names = ", ".join(f"{{{known}}}" for known in sorted(placeholders)) or "there are none in this stack"
    return f"there is no {{{name}}}; " + (f"did you mean {{{near[0]}}}?" if near else f"known: {names}")
