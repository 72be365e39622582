"""Database URLs: for SQLAlchemy, for libpq, and without a password for messages.

A password that is not percent-encoded may hold any character. SQLAlchemy takes a comma, a slash or a bracket
as part of it but ends it at the first ``@``, and what follows would be a host: shown in errors and metrics.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

from tenfold.errors import DependencyError, SettingsError

try:
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError
except ImportError as error:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[database]'") from error

__all__ = ["database_url", "libpq_url", "parse_url", "server_name"]

# User and password as SQLAlchemy finds them; atomic, so that no part of them is taken for a host.
_URL = re.compile(
    r"(?P<head>\w+(?:\+\w+)?://)(?P<user>(?>(?:[^:/]*(?::[^@]*)?@)?))(?P<hosts>[^/?]*)(?P<rest>.*)", re.S
)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^]]*\]|[^:]*)(?::(?P<port>\d*))?")


def database_url(text: str | URL) -> URL:
    """Parse ``text`` as :func:`parse_url` does, with psycopg as the driver for PostgreSQL.

    Raises:
        SettingsError: as :func:`parse_url`.
    """
    url = parse_url(text)
    if url.drivername in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    return url


def parse_url(text: str | URL) -> URL:
    """Parse ``text`` to SQLAlchemy's URL.

    ``postgresql://user@one:5432,two:5432/shop``, as libpq writes several hosts, is accepted too.

    Raises:
        SettingsError: it is no URL, or has an ``@`` beside the one before the host; its text is not shown,
            since it may hold a password.
    """
    try:
        url = make_url(_expand_hosts(text) if isinstance(text, str) else text)
    except (ArgumentError, ValueError):
        raise SettingsError(
            "a database's URL cannot be read: one looks like postgresql://user:password@host:5432/name"
        ) from None
    if not isinstance(text, str) and _may_show_password(url):
        raise _misread()
    return url


def _expand_hosts(text: str) -> str:
    found = _URL.fullmatch(text)
    if not found:
        return text
    if "@" in found["hosts"] + found["rest"] and not text.startswith("sqlite"):  # whose rest is a file
        raise _misread()
    if "," not in found["hosts"]:
        return text
    rest = found["rest"] or "/"
    hosts = "&".join(f"host={quote(host, safe=':')}" for host in found["hosts"].split(","))
    return f"{found['head']}{found['user']}{rest}{'&' if '?' in rest else '?'}{hosts}"


def _misread() -> SettingsError:
    return SettingsError(
        "a database's URL has more than one @: write an @ in its password, name or query as %40 "
        "(urllib.parse.quote does), or the password would be read as a host"
    )


def _hosts(url: URL) -> str:
    host = url.query.get("host", "")
    return url.host or (host if isinstance(host, str) else ",".join(host))


def _may_show_password(url: URL) -> bool:
    return url.get_backend_name() != "sqlite" and "@" in f"{_hosts(url)}/{url.database or ''}"


def server_name(url: URL) -> str:
    """Host, port and database: OpenTelemetry's name of a pool that has none of its own.

    Of a URL that SQLAlchemy has misread, because of an ``@`` in its password, the name is the backend's.
    """
    if _may_show_password(url):
        return url.get_backend_name()
    port = f":{url.port}" if url.port else ""
    return f"{_hosts(url)}{port}/{url.database or ''}"


def libpq_url(url: URL) -> str:
    """The URL for psycopg itself, password included; with several hosts, the one that takes writes.

    Each part is percent-encoded: libpq knows no ``+`` for a space, and quotes a part that it refuses.
    """
    query = dict(url.query)
    if isinstance(hosts := query.get("host"), tuple):
        parts = [_HOST_AND_PORT.fullmatch(one) for one in hosts]
        query |= {
            "host": ",".join(part["host"].strip("[]") for part in parts if part),
            "port": ",".join(part["port"] or "5432" for part in parts if part),
            "target_session_attrs": "primary",
        }
    host = url.host or ""
    user = [quote(str(part), safe="") for part in (url.username, url.password) if part is not None]
    address = (
        ":".join(user) + "@" * bool(user) + (f"[{quote(host)}]" if ":" in host else quote(host, safe=""))
    )
    port = f":{url.port}" if url.port else ""
    rest = f"?{urlencode(query, doseq=True, quote_via=quote, safe='')}" if query else ""
    return f"postgresql://{address}{port}/{quote(url.database or '', safe='')}{rest}"
