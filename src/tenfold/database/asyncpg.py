"""asyncpg: connections opened with libpq's parameters, which it does not know all of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

from tenfold.errors import SettingsError

__all__ = ["connect_with", "libpq_parameters", "translate"]

_OWN = frozenset(
    {
        *("command_timeout", "connection_class", "database", "direct_tls", "dsn", "gsslib", "host"),
        *("krbsrvname", "loop", "max_cacheable_statement_size", "max_cached_statement_lifetime", "passfile"),
        *("password", "port", "record_class", "server_settings", "service", "servicefile", "ssl"),
        *("statement_cache_size", "target_session_attrs", "timeout", "user"),
    }
)
_NUMBERS: dict[str, Callable[[str], float]] = {
    "command_timeout": float,
    "max_cacheable_statement_size": int,
    "max_cached_statement_lifetime": int,
    "statement_cache_size": int,
    "timeout": float,
}
_IN_DSN = {"sslcert", "sslkey", "sslmode", "sslpassword", "sslrootcert", "sslcrl", "sslnegotiation"}
_OPTION = re.compile(r"\s*(?:-c\s*|--)([\w.-]+)=((?:\\.|[^\s\\])*)(?:\s+|\Z)", re.S)
# Of a URL that was written for SQLAlchemy's asyncpg; psycopg refuses to connect with them.
_IN_BOTH = frozenset(
    {
        *("gsslib", "host", "krbsrvname", "passfile", "password", "port", "service"),
        *("target_session_attrs", "user"),
    }
)
_UNKNOWN_TO_LIBPQ = (_OWN | {"prepared_statement_cache_size", "prepared_statement_name_func"}) - _IN_BOTH
_SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}


def connect_with(creator: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function for ``connect_args["async_creator_fn"]``: asyncpg's ``connect``, or ``creator``."""
    return partial(_connect, creator)


async def _connect(creator: Callable[..., Any] | None, *args: Any, **arguments: Any) -> Any:
    if creator is None:
        import asyncpg

        creator = asyncpg.connect
    return await creator(*args, **translate(arguments))


def translate(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``asyncpg.connect`` for those of libpq, which may be mixed with its own.

    Raises:
        SettingsError: a parameter has no counterpart.
    """
    found = {name: value for name, value in arguments.items() if name in _OWN}
    found |= {name: to(found[name]) for name, to in _NUMBERS.items() if isinstance(found.get(name), str)}
    settings: dict[str, str] = {}
    if name := arguments.get("application_name") or arguments.get("fallback_application_name"):
        settings["application_name"] = name
    settings |= found.get("server_settings") or {}
    settings |= _parse_options(arguments.get("options", ""))
    if settings:
        found["server_settings"] = settings
    if "connect_timeout" in arguments and "timeout" not in found:
        found["timeout"] = float(arguments["connect_timeout"]) or None  # libpq's 0 is no limit
    if tls := {name: arguments[name] for name in _IN_DSN if name in arguments}:
        found["dsn"] = "postgresql://?" + urlencode(tls)
    known = _OWN | _IN_DSN | {"application_name", "connect_timeout", "fallback_application_name", "options"}
    if unknown := sorted(arguments.keys() - known):
        raise SettingsError(
            f"asyncpg has no parameter {unknown[0]!r}: leave it out of the URL and of connect_args, or use "
            "postgresql+psycopg://"
        )
    return found


def _parse_options(options: str) -> dict[str, str]:
    """The settings in libpq's ``options``: ``-c name=value``, with a backslash before a blank in a value."""
    found: dict[str, str] = {}
    at, options = 0, options.strip()
    while at < len(options):
        match = _OPTION.match(options, at)
        if match is None:
            raise SettingsError(
                "asyncpg takes only settings in a URL's options: write options=-c name=value, once for each"
            )
        found[match[1].replace("-", "_")] = re.sub(r"\\(.)", r"\1", match[2])
        at = match.end()
    return found


def libpq_parameters(query: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a URL for asyncpg as libpq takes them; those without a counterpart are left out."""
    found = {name: value for name, value in query.items() if name not in _UNKNOWN_TO_LIBPQ}
    if query.get("ssl") in _SSL_MODES:
        found.setdefault("sslmode", query["ssl"])
    if "timeout" in query:
        found.setdefault("connect_timeout", str(round(float(query["timeout"]))))
    return found
