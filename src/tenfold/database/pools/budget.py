"""The connection budget of a fleet: the most that it may open, and what the server allows.

Every host, worker process and engine takes from the same ``max_connections`` of the server: their maxima
added up must fit. At the start of a service, with a sync or an async engine:

    with engine.connect() as connection:
        require_budget(connection, Fleet(hosts=4, workers=8))

    async with engine.connect() as connection:
        await connection.run_sync(require_budget, Fleet(hosts=4, workers=8))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenfold.database.asyncpg import libpq_parameters
from tenfold.errors import DependencyError, SettingsError
from tenfold.types import Finding, Verdict

if TYPE_CHECKING:
    from sqlalchemy import Connection


__all__ = [
    "CHECK",
    "Fleet",
    "ServerLimits",
    "check_budget",
    "lifetime_s",
    "query_limits",
    "query_limits_at",
    "require_budget",
]


CHECK = "connections fit"

POOL_SIZE = 20
MAX_OVERFLOW = 10
TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 10
RECYCLE_S = 3600.0
PING_AFTER_S = 30.0
WAITERS_PER_CONNECTION = 10  # more could not be served before they give up
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
        """The number of pools."""
        return self.hosts * self.workers * self.engines

    @property
    def connections(self) -> int:
        """The most that may be open at once."""
        return self.pools * (self.pool_size + self.max_overflow) + self.reserve


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The connections that a server allows.

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
        """The connections that the service may open."""
        free = max(self.max_connections - self.reserved, 0)
        return free if self.limit is None else min(free, self.limit)


def check_budget(fleet: Fleet, limits: ServerLimits) -> Finding:
    """Check that the server allows all that the fleet may open; the remedy has numbers that fit."""
    numbers = {"needed": fleet.connections, "allowed": limits.connections, "pools": fleet.pools}
    needed = (
        f"hosts {fleet.hosts} × workers {fleet.workers} × engines {fleet.engines} × "
        f"({fleet.pool_size} + {fleet.max_overflow}) + reserve {fleet.reserve} = {fleet.connections:,}"
    )
    allowed = f"{limits.connections:,} ({_limit_name(limits)})"
    if fleet.connections <= limits.connections:
        return Finding(CHECK, f"{needed} of {allowed} connections", Verdict.PASS, numbers)
    claim = f"{needed} connections, and the server allows {allowed}"
    return Finding(CHECK, claim, Verdict.FAIL, numbers, _remedy(fleet, limits))


def _limit_name(limits: ServerLimits) -> str:
    if limits.limit is not None and limits.limit == limits.connections:
        return "CONNECTION LIMIT of its role or database"
    return f"max_connections {limits.max_connections:,} − {limits.reserved} for superusers"


def _remedy(fleet: Fleet, limits: ServerLimits) -> str:
    each = (limits.connections - fleet.reserve) // fleet.pools
    if each < 1:
        return (
            "not even one connection for each pool: put PgBouncer in front of the server "
            "(tenfold.database.pools.pgbouncer), or run fewer workers"
        )
    size = max(1, each * 2 // 3)
    raised = (
        f"raise max_connections to {fleet.connections + limits.reserved:,} if it has memory for them"
        if limits.limit is None or fleet.connections <= limits.limit
        else f"raise CONNECTION LIMIT to {fleet.connections:,} if max_connections has room for them"
    )
    return (
        f"set pool_size to {size} and max_overflow to {each - size}, put PgBouncer in front of the server, "
        f"or {raised}"
    )


def lifetime_s(recycle_s: float, *, born: float) -> float:
    """The lifetime of a connection with jitter: between 80 % and all of ``recycle_s``, seconds.

    Connections that were opened together would otherwise be opened anew together, for ever. ``born`` is the
    time at which this one was opened (``time.time()``); its digits below the millisecond are the random part.
    """
    return recycle_s * (1 - JITTER * (born * 1000 % 1))


# ------------------------------------------------------------------ the limits of a server

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


def query_limits(connection: Connection) -> ServerLimits:
    """Ask the server what it allows this role; behind PgBouncer, too, PostgreSQL answers."""
    most, reserved = connection.exec_driver_sql(_SETTINGS).one()
    limit = connection.exec_driver_sql(_LIMITS).scalar()
    return ServerLimits(max_connections=most, reserved=reserved, limit=limit)


def require_budget(connection: Connection, fleet: Fleet) -> None:
    """Stop the start of a service whose fleet may open more connections than the server allows.

    Raises:
        SettingsError: the sum, the limit, and numbers that would fit.
    """
    finding = check_budget(fleet, query_limits(connection))
    if finding.verdict is Verdict.FAIL:
        raise SettingsError(f"{finding.claim}: {finding.remedy}")


def query_limits_at(url: str) -> ServerLimits:
    """As :func:`query_limits`, over a connection of its own that is closed again.

    Raises:
        DependencyError: SQLAlchemy or psycopg is not installed.
        SettingsError: the server cannot be asked; what it said is in the message, the URL is not.
    """
    try:
        import psycopg
        from sqlalchemy import create_engine
        from sqlalchemy.exc import DBAPIError
        from sqlalchemy.pool import NullPool

        from tenfold.database.urls import parse_url
    except ImportError:
        raise DependencyError(
            "asking a database needs SQLAlchemy and psycopg, which are not installed: "
            "pip install 'tenfold[database]'"
        ) from None
    try:
        given = parse_url(url)
        target = given.set(drivername="postgresql+psycopg", query=libpq_parameters(given.query))
        options: dict[str, Any] = {"application_name": "tenfold doctor"}
        if "connect_timeout" not in target.query:
            options["connect_timeout"] = CONNECT_TIMEOUT_S
        with create_engine(target, poolclass=NullPool, connect_args=options).connect() as connection:
            return query_limits(connection)
    except DBAPIError as error:
        why = " ".join(str(error.orig).split())[:300]
        assert isinstance(error.orig, psycopg.Error)
        raise SettingsError(f"the server that database.url names cannot be asked: {why}") from None
