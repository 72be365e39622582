"""One connection of one server for one transaction, and what its backend is known to have seen."""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tenfold.database.pools.statement_timeout import was_ended_by_deadline
from tenfold.database.psycopg import Line, lacks_positions, refused, server_version, sqlstate
from tenfold.database.replicas.freshness import (
    POSITION,
    WHOLE_PLACE,
    Place,
    Verdict,
    answered,
    can_wait,
    judge,
    waiting,
)
from tenfold.database.replicas.read_counters import How
from tenfold.database.replicas.servers import Member
from tenfold.errors import DeadlineExceededError
from tenfold.positions import Token

__all__ = ["CONFLICT", "Lease", "ServerLostError"]

CONFLICT = "40001"  # a hot standby ended the statement, because replay needed what it was reading

_INFO, _LINE = "tenfold place", "tenfold line"  # in a connection's info, which is cleared when it ends
_MOST_STALE = 100


class ServerLostError(Exception):
    """A server cannot be reached; never leaves the router."""


class Lease:
    """A checked-out connection. Made by :meth:`take`, given back by :meth:`give_back`."""

    __slots__ = ("_first", "_given", "connection", "how", "lost", "place", "server", "shown_to")

    def __init__(self, server: Member, connection: Connection, place: Place | None, *, first: bool) -> None:
        self.server = server
        self.connection = connection
        self.place = place
        self._first = first
        self.how: How = "anywhere"
        self.shown_to = 0  # the position of the last answer, in terms of what a visitor may have seen
        self.lost = self._given = False
        server.entered()

    @classmethod
    def take(cls, server: Member, *, asynchronous: bool) -> Lease:
        """A connection that is not known to be dead.

        Raises:
            ServerLostError: there is none to be had.
        """
        engine = server.engine(asynchronous)
        for _ in range(_MOST_STALE):
            try:
                connection = engine.connect()
            except DBAPIError as error:
                raise ServerLostError(server.name) from error
            bare: Any = connection.connection
            info = bare._connection_record.info  # which `bare.info` is, after 1 µs
            line: Line | None = info.get(_LINE)
            if line is None:
                info[_LINE] = Line(bare.driver_connection)
                return cls(server, connection, None, first=True)
            if not line.is_dead():
                return cls(server, connection, info.get(_INFO), first=False)
            connection.invalidate()
            connection.close()
        raise ServerLostError(server.name)

    def fresh_for(self, token: Token | None) -> Verdict:
        """Whether a read by the holder of ``token`` may run here; asks the backend only when it has to.

        Raises:
            ServerLostError: it did not answer.
            DeadlineExceededError: it did not within the time that the request has.
        """
        verdict = judge(token, self.place)
        self.how = "known"
        if verdict is Verdict.ASK and token is not None:
            self.how = "asked"
            same = self.place is not None and self.place.timeline == token.timeline
            self.ask(whole=not same)
            verdict = judge(token, self.place, asked=True)
        return verdict

    def ask(self, *, whole: bool = False) -> Place | None:
        """Where the backend is, by a statement of its own outside of any transaction; None: it cannot say.

        Raises:
            ServerLostError: it did not answer.
            DeadlineExceededError: it did not within the time that the request has.
        """
        try:
            row = self._row(WHOLE_PLACE if whole or self.place is None else POSITION)
        except BaseException as error:
            if lacks_positions(error):
                self.server.cluster.positions = False
                return None
            self._failed(error)
        return self._learned(row)

    def wait(self, token: Token, wait_s: float) -> bool:
        """Whether the server could be told to wait until it has replayed ``token``. Whether it has, ask then.

        Raises:
            ServerLostError: it did not answer.
            DeadlineExceededError: it did not within the time that the request has.
        """
        version = server_version(self.connection.connection.driver_connection)
        if not self.server.waits or not can_wait(token, self.place, version=version):
            return False
        try:
            self._row(waiting(token.position, wait_s))
        except BaseException as error:
            if refused(error):
                self.server.waits = False
            elif sqlstate(error) != CONFLICT:  # which is about this once
                self._failed(error)
            return False
        return True

    def _failed(self, error: BaseException) -> NoReturn:
        """A question got no answer."""
        if was_ended_by_deadline(error):  # by a server that is fine, on a connection that is
            raise DeadlineExceededError(
                "the request's time was over before a server said where it is"
            ) from error
        self.drop(error)  # also when it was cancelled: the answer may be under way
        if not isinstance(error, Exception):
            raise error
        raise ServerLostError(self.server.name) from error

    def _row(self, statement: str) -> tuple[Any, ...]:
        """On the driver's connection: SQLAlchemy would begin a transaction, and time has a price here."""
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
            if in_transactions and not dbapi.closed:
                dbapi.autocommit = False
        return row

    def _learned(self, row: tuple[Any, ...]) -> Place:
        cluster = self.server.cluster
        answer = answered(row, known=self.place, segment_bytes=cluster.segment_bytes)
        self.place, self.shown_to = answer.place, answer.shown
        cluster.segment_bytes = answer.segment_bytes
        self.connection.info[_INFO] = answer.place
        return answer.place

    def seen(self, *, expires_at: int) -> Token | None:
        """What whoever used this lease has seen: asked for now, after the fact. None without positions."""
        heard = self.server.health.place
        moved = heard is not None and self.place is not None and heard.timeline != self.place.timeline
        try:
            place = self.ask(whole=moved)
        except (ServerLostError, DeadlineExceededError):
            return Token.unsure(expires_at=expires_at)
        if place is None:
            return None
        return Token(place.system, place.timeline, self.shown_to, expires_at)

    def served(self, seconds: float, *, now: float) -> None:
        """A statement took so long. What a new connection has to load says nothing of its server."""
        if self._first:
            self._first = False
            return
        server = self.server
        server.load.took(seconds, now=now)
        if not server.health.breaker.closed:
            server.health.worked()

    def drop(self, error: BaseException | None = None) -> None:
        """The connection is no more: nobody shall get it again."""
        self.lost = True
        with contextlib.suppress(SQLAlchemyError):
            self.connection.invalidate(error)

    def give_back(self) -> None:
        """Back to its pool; nothing happens the second time."""
        if self._given:
            return
        self._given = True
        self.server.left()
        try:  # noqa: SIM105 - suppress() is an object and two calls, for each read
            self.connection.close()
        except SQLAlchemyError:
            pass
