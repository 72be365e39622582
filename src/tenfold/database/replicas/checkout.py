"""A checkout: one connection of one server for one transaction, and the position its backend has reached."""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tenfold.database.drivers import SocketPoll, is_refusal, server_version, sqlstate
from tenfold.database.pools.statement_timeout import was_ended_by_deadline
from tenfold.database.replicas.freshness import (
    FULL_POSITION_QUERY,
    POSITION_QUERY,
    Freshness,
    ReplayPosition,
    can_wait,
    freshness,
    parse_answer,
    wait_statement,
)
from tenfold.database.replicas.read_counters import ReadOutcome
from tenfold.database.replicas.servers import DatabaseServer
from tenfold.database.session_state import may_have_state
from tenfold.errors import DeadlineExceededError, PositionError, SettingsError
from tenfold.positions import Token

__all__ = ["REPLAY_CONFLICT", "Checkout", "ServerLostError"]

REPLAY_CONFLICT = "40001"  # a hot standby ended the statement, because replay needed what it was reading

# In a connection's info, which is cleared when it ends.
_INFO_POSITION, _INFO_POLL = "tenfold replay position", "tenfold socket poll"
_MAX_DEAD = 100
_BEHIND_PGBOUNCER = (
    "PgBouncer refuses the settings that a read's connection starts with: pass options={'engine': "
    "tenfold.database.pools.pgbouncer.driver_options(…)} to the router, for transaction mode"
)


class ServerLostError(Exception):
    """A server cannot be reached; never leaves the router."""


class Checkout:
    """A checked-out connection. Made by :meth:`acquire`, given back by :meth:`release`."""

    __slots__ = (
        "_info",
        "_is_first_use",
        "_released",
        "connection",
        "is_lost",
        "outcome",
        "position",
        "server",
        "visible",
    )

    def __init__(
        self,
        server: DatabaseServer,
        connection: Connection,
        info: dict[Any, Any],
        *,
        is_first_use: bool,
    ) -> None:
        self.server = server
        self.connection = connection
        self._info = info  # of the connection's record
        self.position: ReplayPosition | None = info.get(_INFO_POSITION)
        self._is_first_use = is_first_use
        self.outcome: ReadOutcome = "no_token"
        self.visible = 0  # the position whose state a read before the last answer may have shown
        self.is_lost = self._released = False
        server.increment_in_flight()

    @classmethod
    def acquire(cls, server: DatabaseServer, *, asynchronous: bool) -> Checkout:
        """Check out a connection that is not known to be dead.

        Raises:
            ServerLostError: none can be opened.
            SettingsError: a PgBouncer is there, of which the router was not told.
        """
        engine = server.engine(asynchronous)
        for _ in range(_MAX_DEAD):
            try:
                connection = engine.connect()
            except (DBAPIError, OSError) as error:  # asyncpg's is bare
                if "unsupported startup parameter" in str(error):
                    raise SettingsError(_BEHIND_PGBOUNCER) from error
                raise ServerLostError(server.name) from error
            bare: Any = connection.connection
            info = bare._connection_record.info  # which `bare.info` is, after 1 µs
            poll: SocketPoll | None = info.get(_INFO_POLL)
            if poll is None:
                info[_INFO_POLL] = SocketPoll(bare.driver_connection)
                return cls(server, connection, info, is_first_use=True)
            if not poll.is_dead():
                return cls(server, connection, info, is_first_use=False)
            connection.invalidate()
            connection.close()
        raise ServerLostError(server.name)

    def freshness_for(self, token: Token | None) -> Freshness:
        """The freshness of a read here for the holder of ``token``; asks the backend only when it has to.

        Raises:
            ServerLostError: it did not answer.
            DeadlineExceededError: it did not within the time that the request has.
        """
        found = freshness(token, self.position)
        self.outcome = "known_fresh"
        if found is Freshness.UNKNOWN and token is not None:
            self.outcome = "asked_replica"
            same = self.position is not None and self.position.timeline == token.timeline
            self.query_position(full=not same)
            found = freshness(token, self.position, asked=True)
        return found

    def query_position(self, *, full: bool = False) -> ReplayPosition | None:
        """Ask the backend for its position, outside of any transaction; None when it has none.

        Raises:
            ServerLostError: it did not answer.
            DeadlineExceededError: it did not within the time that the request has.
        """
        try:
            row = self._fetch_row(FULL_POSITION_QUERY if full or self.position is None else POSITION_QUERY)
        except BaseException as error:
            if is_refusal(error) and not may_have_state(self._info):  # such as another role's
                self.server.cluster.give_up_positions(self.server.name, error)
                return None
            self._raise_lost(error)
        try:
            return self._record_position(row)
        except (PositionError, TypeError, ValueError) as error:
            self.server.cluster.give_up_positions(self.server.name, error)
            return None

    def wait_for(self, token: Token, wait_s: float) -> bool:
        """Let the server wait until it has replayed ``token``; False when it cannot wait by itself.

        That it has replayed the token is not known then: ask for its position.

        Raises:
            ServerLostError: it did not answer.
            DeadlineExceededError: it did not within the time that the request has.
        """
        version = server_version(self.connection.connection.driver_connection)
        if not self.server.supports_wait or not can_wait(token, self.position, version=version):
            return False
        try:
            self._fetch_row(wait_statement(token.position, wait_s))
        except BaseException as error:
            if is_refusal(error):
                self.server.supports_wait = False
            elif sqlstate(error) != REPLAY_CONFLICT:  # which is about this once
                self._raise_lost(error)
            return False
        return True

    def _raise_lost(self, error: BaseException) -> NoReturn:
        if was_ended_by_deadline(error):  # by a server that is fine, on a connection that is
            raise DeadlineExceededError(
                "the request's time was over before a server said where it is"
            ) from error
        self.invalidate(error)  # also when it was cancelled: the answer may be under way
        if not isinstance(error, Exception):
            raise error
        raise ServerLostError(self.server.name) from error

    def _fetch_row(self, statement: str) -> tuple[Any, ...]:
        """Ask on the driver's connection: SQLAlchemy would begin a transaction, and this is a hot path."""
        dbapi: Any = self.connection.connection.dbapi_connection
        in_transactions = not dbapi.autocommit
        if in_transactions:
            dbapi.autocommit = True
        cursor = dbapi.cursor()
        try:
            cursor.execute(statement)
            row: tuple[Any, ...] = cursor.fetchone()
        finally:
            cursor.close()
            if in_transactions and not getattr(dbapi, "closed", False):  # asyncpg has no such attribute
                dbapi.autocommit = False
        return row

    def _record_position(self, row: tuple[Any, ...]) -> ReplayPosition:
        cluster = self.server.cluster
        answer = parse_answer(row, known=self.position, segment_bytes=cluster.segment_bytes)
        self.position, self.visible = answer.replayed, answer.visible
        cluster.segment_bytes = answer.segment_bytes
        self.connection.info[_INFO_POSITION] = answer.replayed
        return answer.replayed

    def visible_token(self, *, expires_at: int) -> Token | None:
        """Ask, after the fact, for the position that the user of this checkout has seen.

        None without positions; an unsure token when the server does not answer.
        """
        last = self.server.health.last_position
        moved = last is not None and self.position is not None and last.timeline != self.position.timeline
        try:
            position = self.query_position(full=moved)
        except (ServerLostError, DeadlineExceededError):
            return Token.unsure(expires_at=expires_at)
        if position is None:
            return None
        return Token(position.system, position.timeline, self.visible, expires_at)

    @property
    def may_have_state(self) -> bool:
        """True if the session may have set something that the transaction's statements rely on."""
        return may_have_state(self._info)

    def record_statement(self, seconds: float, *, now: float) -> None:
        """Add a statement's duration to the server's load.

        Not of a new connection: what the backend has to load first says nothing of its server.
        """
        if self._is_first_use:
            self._is_first_use = False
            return
        server = self.server
        server.load.record_duration(seconds, now=now)
        if not server.health.breaker.is_closed:
            server.health.record_success()

    def invalidate(self, error: BaseException | None = None) -> None:
        """Close the connection; the pool does not hand it out again."""
        self.is_lost = True
        with contextlib.suppress(SQLAlchemyError):
            self.connection.invalidate(error)

    def __del__(self) -> None:
        # Of a session that was never closed; the pool takes its connection back by itself.
        if not self._released:
            self.server.count_abandoned()

    def release(self) -> None:
        """Return the connection to its pool; nothing happens the second time."""
        if self._released:
            return
        self._released = True
        self.server.decrement_in_flight()
        try:  # noqa: SIM105 - suppress() is an object and two calls, for each read
            self.connection.close()
        except SQLAlchemyError:
            pass
