"""PgBouncer's configuration, and the options of engines that connect through it.

Transaction mode: a server's connection belongs to a client for one transaction. What lives in a session does
not survive that: SET, advisory locks of a session, LISTEN, temporary tables, and, before version 1.21,
prepared statements. https://www.pgbouncer.org/config.html, https://www.pgbouncer.org/features.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tenfold.database.pools.budget import CONNECT_TIMEOUT_S, RECYCLE_S, TIMEOUT_S, Fleet, ServerLimits
from tenfold.errors import SettingsError
from tenfold.types import File

__all__ = ["PgBouncer", "connection_limits", "driver_options", "render"]

PREPARED_SINCE = (1, 21)  # the first version that keeps prepared statements apart in transaction mode
PSYCOPG_PREPARED_SINCE = (1, 22)  # psycopg's own condition, with libpq 17: it has to close them, too

_HOST = re.compile(r"[A-Za-z0-9_.:/-]+")
_ALIAS = re.compile(
    r"(?!pgbouncer\Z)[A-Za-z0-9_.-]{1,63}"
)  # its parser stumbles over quoted ones (issue 971)
_MAX_NAME = 63  # bytes of a name in PostgreSQL


@dataclass(frozen=True, slots=True)
class PgBouncer:
    """One PgBouncer in front of one server.

    Attributes:
        host: of PostgreSQL: a name, an address or the folder of its socket.
        port: of PostgreSQL.
        databases: the names under which clients know its databases, and their names there.
        users: name → password or SCRAM secret (``SCRAM-SHA-256$…``), in clear text in userlist.txt: that file
            is for PgBouncer's account only, mode 0600. With a secret PgBouncer can log in where it was taken
            from, without ever knowing the password.
        pool_size: connections to the server for each user and database.
        max_db_connections: connections to the server for each database, whatever its users; 0 is no limit.
        max_clients: connections of clients, all in all; each takes a file descriptor.
        listen: the address to listen on.
        listen_port: the port to listen on.
        version: of PgBouncer itself: what an older one does not know is left out.
        userlist: where userlist.txt will be, as PgBouncer sees it.
    """

    host: str
    databases: Mapping[str, str]
    users: Mapping[str, str] = field(repr=False)
    port: int = 5432
    pool_size: int = 20
    max_db_connections: int = 0
    max_clients: int = 1000
    listen: str = "127.0.0.1"
    listen_port: int = 6432
    version: tuple[int, int] = PREPARED_SINCE
    userlist: str = "userlist.txt"


def connection_limits(fleet: Fleet, limits: ServerLimits) -> tuple[int, int]:
    """``max_db_connections`` (all that the server allows but the reserve) and ``max_clients`` of a fleet.

    Raises:
        SettingsError: the reserve leaves nothing for the service.
    """
    most = limits.connections - fleet.reserve
    if most < 1:
        raise SettingsError(
            f"the server allows {limits.connections} connections and {fleet.reserve} are kept in reserve, "
            "which leaves none for PgBouncer: raise max_connections or lower the reserve"
        )
    return most, fleet.connections


def render(pooler: PgBouncer) -> tuple[File, ...]:
    """Render ``pgbouncer.ini`` and ``userlist.txt``.

    Raises:
        SettingsError: a name, a host or a password cannot be written down safely.
    """
    if not pooler.databases or not pooler.users:
        raise SettingsError("PgBouncer needs a database and a user: name at least one of each")
    return (
        File(PurePosixPath("pgbouncer.ini"), _ini(pooler)),
        File(PurePosixPath("userlist.txt"), _userlist(pooler.users)),
    )


def _ini(pooler: PgBouncer) -> str:
    host, listen = _address(pooler.host), _address(pooler.listen)
    databases = [
        f"{_alias(alias)} = host={host} port={pooler.port:d} dbname={_literal(name)}"
        for alias, name in pooler.databases.items()
    ]
    settings = {
        "listen_addr": listen,
        "listen_port": f"{pooler.listen_port:d}",
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": _path(pooler.userlist),
        "pool_mode": "transaction",
        "default_pool_size": f"{pooler.pool_size:d}",
        "max_db_connections": f"{pooler.max_db_connections:d}",
        "max_client_conn": f"{pooler.max_clients:d}",
        "query_wait_timeout": f"{TIMEOUT_S:.0f}",
        "server_connect_timeout": f"{CONNECT_TIMEOUT_S:d}",
        "server_lifetime": f"{RECYCLE_S:.0f}",
        "ignore_startup_parameters": "extra_float_digits",
    }
    if pooler.version >= PREPARED_SINCE:
        settings["max_prepared_statements"] = "200"
    lines = [f"{key} = {value}".rstrip() for key, value in settings.items()]
    return "\n".join(["[databases]", *databases, "", "[pgbouncer]", *lines, ""])


def _userlist(users: Mapping[str, str]) -> str:
    return "".join(f"{_quoted(user)} {_quoted(secret, most=2000)}\n" for user, secret in users.items())


def driver_options(
    driver: str, *, version: tuple[int, int] = PREPARED_SINCE, closes_prepared: bool = False
) -> dict[str, Any]:
    """Arguments for :func:`tenfold.database.pool_options` of an engine that connects through PgBouncer.

    Args:
        driver: "psycopg", "psycopg2" or "asyncpg".
        version: of PgBouncer.
        closes_prepared: libpq is 17 or newer: ``psycopg.capabilities.has_send_close_prepared()``.
    """
    options: dict[str, Any] = {"statement_timeout": "transaction"}
    if driver == "psycopg" and not (version >= PSYCOPG_PREPARED_SINCE and closes_prepared):
        options["connect_args"] = {"prepare_threshold": None}
    elif driver == "asyncpg" and version < PREPARED_SINCE:
        options["connect_args"] = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
    return options


# ------------------------------------------------------------------ escapes and refusals


def _quoted(text: str, *, most: int = _MAX_NAME) -> str:
    """A name or a password in double quotes, as userlist.txt has them."""
    if not text or _has_controls(text) or len(text.encode()) > most:
        raise SettingsError(
            f"PgBouncer cannot be given a name or a password that is empty, longer than {most} bytes or has "
            "control characters or broken Unicode in it"
        )
    return '"' + text.replace('"', '""') + '"'


def _alias(name: str) -> str:
    if not _ALIAS.fullmatch(name):
        raise SettingsError(
            f"{name!r:.80} is no name for a database of PgBouncer; write letters, digits, _, - and dots"
        )
    return name


def _literal(text: str) -> str:
    """A value of a connection string, in single quotes."""
    _quoted(text)
    return "'" + text.replace("'", "''") + "'"


def _address(host: str) -> str:
    if not _HOST.fullmatch(host):
        raise SettingsError(f"{host!r:.80} is no host for PgBouncer; write one name, address or folder")
    return host


def _path(path: str) -> str:
    if not path or _has_controls(path) or path != path.strip():
        raise SettingsError(f"{path!r:.80} is no path for PgBouncer's userlist")
    return path


def _has_controls(text: str) -> bool:
    """Return whether a control character or a lone surrogate, Python's stand-in for bad bytes, is in it."""
    return any(ord(letter) < 32 or ord(letter) == 127 or "\ud800" <= letter <= "\udfff" for letter in text)
