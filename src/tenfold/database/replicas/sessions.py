"""Sessions that take their connection from the router. One implementation: an AsyncSession has one inside."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from tenfold.database.psycopg import sqlstate
from tenfold.database.replicas.checkout import CONFLICT, Lease
from tenfold.database.replicas.servers import Member

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session


__all__ = ["Errand", "ReadSession", "SessionScope", "WriteSession"]


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Errand:
    """What a session asks of its router. One for all sessions of a kind, since each read makes a session.

    Attributes:
        find: a lease, on none of these servers; only on the primary when the second argument is True.
        finish: told of a lease whose transaction is over, and of whether it was committed.
        isolation: a level, for one transaction; None is AUTOCOMMIT for readers, the server's for writers.
    """

    find: Callable[[frozenset[Member], bool], Lease]
    finish: Callable[[Lease, bool], None]
    isolation: str | None = None


class _LeasedSession(Session):
    """Holds one lease from the first statement of a transaction to its end."""

    _lease: Lease | None = None
    _committed = False

    def __init__(self, *, errand: Errand, **options: Any) -> None:
        super().__init__(**options)
        self._errand = errand

    def get_bind(self, mapper: Any = None, *, bind: Any = None, **_: Any) -> Any:
        """The connection that this transaction runs on."""
        if bind is not None:
            return bind
        if self._lease is None:
            self._lease = self._taken()
        return self._lease.connection

    @abstractmethod
    def _taken(self) -> Lease:
        """A connection to a server that may do what this session is for."""

    def close(self) -> None:
        """As SQLAlchemy's."""
        super().close()
        if self._lease is not None:  # a bind that was asked for and never used has no transaction to end it
            self._end(self._lease)

    def _end(self, lease: Lease) -> None:
        self._lease = None
        committed, self._committed = self._committed, False
        try:
            lease.lost = lease.lost or lease.connection.invalidated
            if self._touched(lease):
                self._errand.finish(lease, committed)
        finally:
            lease.give_back()

    def _touched(self, lease: Lease) -> bool:
        """Whether anything can have been seen or written."""
        return True


@event.listens_for(_LeasedSession, "after_commit", propagate=True)
def _committed(session: _LeasedSession) -> None:
    session._committed = True


@event.listens_for(_LeasedSession, "after_transaction_end", propagate=True)
def _ended(session: _LeasedSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        if session._lease is None:
            session._committed = False
        else:
            session._end(session._lease)


class WriteSession(_LeasedSession):
    """A session on the primary. A connection that is lost during COMMIT is a CommitUnknownError."""

    def _taken(self) -> Lease:
        return self._errand.find(frozenset(), True)


class ReadSession(_LeasedSession):
    """A session that only reads, on a server that has seen what its reader has seen.

    A statement whose server is lost, or that a standby had to cancel, runs again on another server: outside
    of a transaction a read may be repeated. With an isolation level, one snapshot is promised: it may not.
    """

    _avoid: frozenset[Member] = frozenset()  # servers that failed this session
    _has_read = _on_primary = False
    _since = 0.0

    def _taken(self) -> Lease:
        errand = self._errand
        lease = errand.find(self._avoid, self._on_primary)
        if errand.isolation is not None:
            try:
                lease.connection.execution_options(isolation_level=errand.isolation)
            except BaseException:
                lease.give_back()
                raise
        self._has_read = False
        self._since = time.monotonic()  # what finding it took is not the server's fault
        return lease

    def execute(self, *args: Any, **options: Any) -> Any:
        """As SQLAlchemy's."""
        return self._moving(super().execute, args, options)

    def scalar(self, *args: Any, **options: Any) -> Any:
        """As SQLAlchemy's."""
        return self._moving(super().scalar, args, options)

    def scalars(self, *args: Any, **options: Any) -> Any:
        """As SQLAlchemy's."""
        return self._moving(super().scalars, args, options)

    def _moving(self, run: Callable[..., Result], args: tuple[Any, ...], options: dict[str, Any]) -> Result:
        while True:
            if self._lease is not None:
                self._since = time.monotonic()
            try:
                result = run(*args, **options)
            except DBAPIError as error:
                if not self._moves(error):
                    raise
            else:
                self._has_read = True
                if self._lease is not None:
                    now = time.monotonic()
                    self._lease.served(now - self._since, now=now)
                return result

    def _moves(self, error: DBAPIError) -> bool:
        """Whether to run the statement again, elsewhere."""
        lease = self._lease
        conflict = sqlstate(error.orig) == CONFLICT
        if (
            lease is None
            or self._errand.isolation is not None
            or not (error.connection_invalidated or conflict)
        ):
            return False
        if lease.server in self._avoid or (lease.server.primary and self._on_primary):
            return False
        if not conflict:
            lease.lost = True
            lease.server.health.failed()
        self._avoid |= {lease.server}
        # What this session has read there may be ahead of every other replica; the primary is not behind it.
        self._on_primary = self._has_read
        if (transaction := self.get_transaction()) is not None:
            transaction.close()
        return True

    def connection(self, *args: Any, **options: Any) -> Any:
        """As SQLAlchemy's. What is read on it directly is not repeated elsewhere."""
        connection = super().connection(*args, **options)
        self._has_read = True
        return connection

    def _touched(self, lease: Lease) -> bool:
        # A server that was lost before it answered has shown nothing: the next one need not be ahead of it.
        return self._has_read or not lease.lost


# A transaction as a block: ``with`` gives a Session, ``async with`` an AsyncSession.
class SessionScope:
    """Made by the router, used once. The block's end commits a write, an exception rolls it back."""

    __slots__ = ("_async_session", "_commits", "_make", "_make_async", "_session")
    _session: Session
    _async_session: AsyncSession

    def __init__(
        self, make: Callable[[], Session], make_async: Callable[[], AsyncSession], *, commits: bool
    ) -> None:
        self._make, self._make_async, self._commits = make, make_async, commits

    def __enter__(self) -> Session:
        self._session = self._make()
        return self._session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._commits:
                self._session.commit()
        finally:
            self._session.close()  # which rolls back what was not committed

    async def __aenter__(self) -> AsyncSession:
        self._async_session = self._make_async()
        return self._async_session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._async_session as session:
            if kind is None and self._commits:
                await session.commit()
