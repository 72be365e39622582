"""What a PostgreSQL server allows, asked of the server itself.

At the start of a service, with a sync or an async engine:

    with engine.connect() as connection:
        require_room(connection, Fleet(hosts=4, workers=8))

    async with engine.connect() as connection:
        await connection.run_sync(require_room, Fleet(hosts=4, workers=8))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold.database.budget import CONNECT_TIMEOUT_S, Fleet, Room, require
from tenfold.errors import DependencyError, SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["ask", "require_room", "room"]

_SETTINGS = """
SELECT sum(setting::int) FILTER (WHERE name = 'max_connections'),
       sum(setting::int) FILTER (WHERE name <> 'max_connections')
  FROM pg_settings
 WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')
"""
_LIMITS = """
SELECT min(most) FROM (
    SELECT rolconnlimit AS most FROM pg_roles WHERE rolname = current_user
    UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database()
) AS limits WHERE most >= 0
"""


def room(connection: Connection) -> Room:
    """What the server at the other end allows this role; behind PgBouncer, too, PostgreSQL answers."""
    most, reserved = connection.exec_driver_sql(_SETTINGS).one()
    limit = connection.exec_driver_sql(_LIMITS).scalar()
    return Room(max_connections=most, reserved=reserved, limit=limit)


def require_room(connection: Connection, fleet: Fleet) -> None:
    """For the start of a service: go no further when the fleet may open more than the server allows.

    Raises:
        SettingsError: the sum, the limit, and numbers that would fit.
    """
    require(fleet, room(connection))


def ask(url: str) -> Room:
    """As :func:`room`, over a connection of its own that is closed again.

    Raises:
        DependencyError: SQLAlchemy or psycopg is not installed.
        SettingsError: the server cannot be asked; what it said is in the message, the URL is not.
    """
    try:
        import psycopg
        from sqlalchemy import create_engine, make_url
        from sqlalchemy.exc import ArgumentError, DBAPIError
        from sqlalchemy.pool import NullPool
    except ImportError:
        raise DependencyError(
            "asking a database needs SQLAlchemy and psycopg, which are not installed: "
            "pip install 'tenfold[database]'"
        ) from None
    try:
        target = make_url(url).set(drivername="postgresql+psycopg")
        options = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "tenfold doctor"}
        with create_engine(target, poolclass=NullPool, connect_args=options).connect() as connection:
            return room(connection)
    except ArgumentError:
        raise SettingsError(
            "database.url is no URL; it has to be like postgresql://user@host/database"
        ) from None
    except DBAPIError as error:
        why = " ".join(str(error.orig).split())[:300]
        assert isinstance(error.orig, psycopg.Error)
        raise SettingsError(f"the server that database.url names cannot be asked: {why}") from None
