"""Database URLs: for SQLAlchemy, for libpq, and without a password for messages."""

from __future__ import annotations

import re

from tenfold.errors import DependencyError, SettingsError

try:
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError
except ImportError as error:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[database]'") from error

__all__ = ["database_url", "libpq_url", "server_name"]

_SEVERAL_HOSTS = re.compile(
    r"(?P<head>\w+(?:\+\w+)?://(?:[^@/]*@)?)(?P<hosts>[^/?]*,[^/?]*)(?P<rest>.*)", re.S
)


def database_url(text: str | URL) -> URL:
    """Parse ``text`` to SQLAlchemy's URL, with psycopg as the driver for PostgreSQL.

    ``postgresql://user@one:5432,two:5432/shop``, as libpq writes several hosts, is accepted too.

    Raises:
        SettingsError: it is not a URL; its text is not shown, since it may hold a password.
    """
    try:
        url = make_url(_expand_hosts(text) if isinstance(text, str) else text)
    except (ArgumentError, ValueError):
        raise SettingsError(
            "a database's URL cannot be read: one looks like postgresql://user:password@host:5432/name"
        ) from None
    if url.drivername in ("postgres", "postgresql"):
        return url.set(drivername="postgresql+psycopg")
    return url


def _expand_hosts(text: str) -> str:
    found = _SEVERAL_HOSTS.fullmatch(text)
    if not found:
        return text
    rest = found["rest"] or "/"
    hosts = "&".join(f"host={host}" for host in found["hosts"].split(","))
    return f"{found['head']}{rest}{'&' if '?' in rest else '?'}{hosts}"


def server_name(url: URL) -> str:
    """Host, port and database: OpenTelemetry's name of a pool that has none of its own."""
    host = url.query.get("host", "")
    hosts = host if isinstance(host, str) else ",".join(host)
    port = f":{url.port}" if url.port else ""
    return f"{url.host or hosts}{port}/{url.database or ''}"


def libpq_url(url: URL) -> str:
    """The URL for psycopg itself, password included; with several hosts, the one that takes writes."""
    host = url.query.get("host")
    plain = url.set(drivername="postgresql")
    if isinstance(host, tuple):
        plain = plain.difference_update_query(["host"])
        parts = [one.rpartition(":") if ":" in one else (one, "", "") for one in host]
        plain = plain.update_query_dict(
            {
                "host": ",".join(name for name, _, _ in parts),
                "port": ",".join(port or "5432" for _, _, port in parts),
                "target_session_attrs": "primary",
            }
        )
    return plain.render_as_string(hide_password=False)
