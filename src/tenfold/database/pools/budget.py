"""How many connections, for how long, and whether the server has room for all of them: the arithmetic.

A server's connections are one account that every host, worker process and engine draws on. What one engine
may take is harmless; what all of them may take at once is what the server has to allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenfold.errors import DependencyError, SettingsError
from tenfold.types import Finding, Verdict

if TYPE_CHECKING:
    from sqlalchemy import Connection


__all__ = ["CHECK", "Fleet", "Room", "ask", "judge", "lifetime_s", "require", "require_room", "room"]


CHECK = "connections fit"

POOL_SIZE = 20
MAX_OVERFLOW = 10
TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10
RECYCLE_S = 3600.0
PING_AFTER_S = 30.0
WAITING_FOR_EACH = 10  # waiters for each connection: more could not be served before they give up

JITTER = 0.2  # the part of a connection's life that differs from connection to connection


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything that connects to one server: hosts × workers × engines × (pool size + overflow) + reserve.

    Attributes:
        hosts: machines or pods that run the service.
        workers: processes on each of them.
        engines: engines in each process that connect to this server.
        pool_size: connections that an engine keeps.
        max_overflow: connections that an engine opens beyond these for a while.
        reserve: connections for everything else: migrations, cron jobs, a person with psql.
    """

    hosts: int = 1
    workers: int = 1
    engines: int = 1
    pool_size: int = POOL_SIZE
    max_overflow: int = MAX_OVERFLOW
    reserve: int = 10

    @property
    def pools(self) -> int:
        """How many pools there are."""
        return self.hosts * self.workers * self.engines

    @property
    def connections(self) -> int:
        """The most that may be open at once."""
        return self.pools * (self.pool_size + self.max_overflow) + self.reserve


@dataclass(frozen=True, slots=True)
class Room:
    """What a server allows.

    Attributes:
        max_connections: the server's own setting.
        reserved: those an ordinary role does not get: superuser_reserved_connections and, since
            PostgreSQL 16, reserved_connections.
        limit: CONNECTION LIMIT of the role or of the database, whichever is less; None without one.
    """

    max_connections: int = 100
    reserved: int = 3
    limit: int | None = None

    @property
    def connections(self) -> int:
        """What is left for the service."""
        free = max(self.max_connections - self.reserved, 0)
        return free if self.limit is None else min(free, self.limit)


def judge(fleet: Fleet, room: Room) -> Finding:
    """Whether the server has room for the whole fleet at its busiest; the remedy has numbers that fit."""
    numbers = {"needed": fleet.connections, "allowed": room.connections, "pools": fleet.pools}
    needed = (
        f"hosts {fleet.hosts} × workers {fleet.workers} × engines {fleet.engines} × "
        f"({fleet.pool_size} + {fleet.max_overflow}) + reserve {fleet.reserve} = {fleet.connections:,}"
    )
    allowed = f"{room.connections:,} ({_limit(room)})"
    if fleet.connections <= room.connections:
        return Finding(CHECK, f"{needed} of {allowed} connections", Verdict.PASS, numbers)
    claim = f"{needed} connections, and the server allows {allowed}"
    return Finding(CHECK, claim, Verdict.FAIL, numbers, _way_out(fleet, room))


def require(fleet: Fleet, room: Room) -> None:
    """As :func:`judge`, for a start that had better not happen.

    Raises:
        SettingsError: the fleet may open more connections than the server allows.
    """
    finding = judge(fleet, room)
    if finding.verdict is Verdict.FAIL:
        raise SettingsError(f"{finding.claim}: {finding.remedy}")


def _limit(room: Room) -> str:
    if room.limit is not None and room.limit == room.connections:
        return "CONNECTION LIMIT of its role or database"
    return f"max_connections {room.max_connections:,} − {room.reserved} for superusers"


def _way_out(fleet: Fleet, room: Room) -> str:
    each = (room.connections - fleet.reserve) // fleet.pools
    if each < 1:
        return (
            "not even one connection for each pool: put PgBouncer in front of the server "
            "(tenfold.database.pools.pgbouncer), or run fewer workers"
        )
    size = max(1, each * 2 // 3)
    raised = (
        f"raise max_connections to {fleet.connections + room.reserved:,} if it has memory for them"
        if room.limit is None or fleet.connections <= room.limit
        else f"raise CONNECTION LIMIT to {fleet.connections:,} if max_connections has room for them"
    )
    return (
        f"set pool_size to {size} and max_overflow to {each - size}, put PgBouncer in front of the server, "
        f"or {raised}"
    )


def lifetime_s(recycle_s: float, *, born: float) -> float:
    """How long a connection is used: between 80 % and all of ``recycle_s``, seconds.

    Connections that were opened together would otherwise be opened anew together, for ever. ``born`` is when
    this one was opened (``time.time()``); its digits below the millisecond are the lot that it draws.
    """
    return recycle_s * (1 - JITTER * (born * 1000 % 1))


# What a PostgreSQL server allows, asked of the server itself.
#
# At the start of a service, with a sync or an async engine:
#
#     with engine.connect() as connection:
#         require_room(connection, Fleet(hosts=4, workers=8))
#
#     async with engine.connect() as connection:
#         await connection.run_sync(require_room, Fleet(hosts=4, workers=8))
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
