"""Sessions on connections from the router. One implementation: an AsyncSession has one inside."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session, SessionTransaction

from tenfold.database.drivers import sqlstate
from tenfold.database.replicas.checkout import REPLAY_CONFLICT, Checkout
from tenfold.database.replicas.servers import DatabaseServer
from tenfold.errors import SettingsError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["ConnectionSource", "ReadSession", "SessionScope", "WriteSession", "with_methods"]


Result = TypeVar("Result")


class SessionScope:
    """A transaction as a block: ``with`` gives a Session, ``async with`` an AsyncSession.

    Made by the router, used once. The block's end commits a write, an exception rolls it back.
    """

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


@dataclass(frozen=True, slots=True)
class ConnectionSource:
    """The router's side of a session. One for all sessions of a kind, since each read makes a session.

    Attributes:
        acquire: checks out a connection of none of these servers; of the primary when the second argument is
            True.
        record_end: called with a checkout whose transaction is over, and with whether it was committed.
        isolation: a level, for one transaction; None is AUTOCOMMIT for readers, the server's for writers.
    """

    acquire: Callable[[frozenset[DatabaseServer], bool], Checkout]
    record_end: Callable[[Checkout, bool], None]
    isolation: str | None = None


class _RoutedSession(Session):
    """Holds one checkout from the first statement of a transaction to its end."""

    _checkout: Checkout | None = None
    _has_committed = _is_acquiring = False
    _times_closed = 0

    def __init__(self, *, source: ConnectionSource, **options: Any) -> None:
        super().__init__(**options)
        self._source = source

    def get_bind(self, mapper: Any = None, *, bind: Any = None, **_: Any) -> Any:
        """The connection that this transaction runs on."""
        if bind is not None:
            return bind
        if self._checkout is None:
            self._checkout = self._acquire_alone()
        return self._checkout.connection

    def _acquire_alone(self) -> Checkout:
        if self._is_acquiring:
            raise InvalidRequestError(
                "this session is getting a connection for another statement; concurrent operations are not "
                "permitted: give each task a session of its own",
                code="isce",
            )
        self._is_acquiring, times_closed = True, self._times_closed
        try:
            checkout = self._acquire()
        finally:
            self._is_acquiring = False
        if self._times_closed != times_closed:
            checkout.release()
            raise InvalidRequestError(
                "this session was closed while it was getting a connection: await its statements first",
                code="isce",
            )
        return checkout

    @abstractmethod
    def _acquire(self) -> Checkout:
        """Check out a connection to a server that may do what this session is for."""

    def close(self) -> None:
        """As SQLAlchemy's."""
        self._times_closed += 1
        super().close()
        if self._checkout is not None:  # a bind that was never used has no transaction to end it
            self._end(self._checkout)

    def _end(self, checkout: Checkout) -> None:
        self._checkout = None
        has_committed, self._has_committed = self._has_committed, False
        try:
            checkout.is_lost = checkout.is_lost or checkout.connection.invalidated
            if self._may_have_run(checkout):
                self._source.record_end(checkout, has_committed)
        finally:
            checkout.release()

    def _may_have_run(self, checkout: Checkout) -> bool:
        """Return whether anything can have been read or written."""
        return True


@event.listens_for(_RoutedSession, "after_commit", propagate=True)
def _note_commit(session: _RoutedSession) -> None:
    session._has_committed = True


@event.listens_for(_RoutedSession, "after_transaction_end", propagate=True)
def _end_transaction(session: _RoutedSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        if session._checkout is None:
            session._has_committed = False
        else:
            session._end(session._checkout)


class WriteSession(_RoutedSession):
    """A session on the primary. A connection that is lost during COMMIT is a CommitUnknownError."""

    def _acquire(self) -> Checkout:
        return self._source.acquire(frozenset(), True)


class ReadSession(_RoutedSession):
    """A session that only reads, on a server that has replayed what its reader has seen.

    A statement whose server is lost, or that a standby had to cancel, runs again on another server: outside
    of a transaction a read may be repeated. With an isolation level, one snapshot is promised: it may not.
    """

    _avoid: frozenset[DatabaseServer] = frozenset()  # servers that failed this session
    _has_read = _primary_only = False
    _started = 0.0

    def _acquire(self) -> Checkout:
        source = self._source
        checkout = source.acquire(self._avoid, self._primary_only)
        if source.isolation is not None:
            try:
                checkout.connection.execution_options(isolation_level=source.isolation)
            except BaseException:
                checkout.release()
                raise
        self._has_read = False
        self._started = time.monotonic()  # the time for the checkout is not the server's
        return checkout

    def execute(self, *args: Any, **options: Any) -> Any:
        """As SQLAlchemy's."""
        return self._run(super().execute, args, options)

    def scalar(self, *args: Any, **options: Any) -> Any:
        """As SQLAlchemy's."""
        return self._run(super().scalar, args, options)

    def scalars(self, *args: Any, **options: Any) -> Any:
        """As SQLAlchemy's."""
        return self._run(super().scalars, args, options)

    def _run(self, run: Callable[..., Result], args: tuple[Any, ...], options: dict[str, Any]) -> Result:
        while True:
            if self._checkout is not None:
                self._started = time.monotonic()
            try:
                result = run(*args, **options)
            except DBAPIError as error:
                if not self._fail_over(error):
                    raise
            else:
                self._has_read = True
                if self._checkout is not None:
                    now = time.monotonic()
                    self._checkout.record_statement(now - self._started, now=now)
                return result

    def _fail_over(self, error: DBAPIError) -> bool:
        """Leave a server that failed; False when the statement may not run again elsewhere."""
        checkout = self._checkout
        conflict = sqlstate(error.orig) == REPLAY_CONFLICT
        if (
            checkout is None
            or self._source.isolation is not None
            or (self._has_read and checkout.may_have_state)
            or not (error.connection_invalidated or conflict)
        ):
            return False
        if checkout.server in self._avoid or (checkout.server.is_primary and self._primary_only):
            return False
        if not conflict:
            checkout.is_lost = True
            checkout.server.health.record_failure()
        self._avoid |= {checkout.server}
        # What this session has read there may be ahead of every other replica; the primary is not behind it.
        self._primary_only = self._has_read
        if (transaction := self.get_transaction()) is not None:
            transaction.close()
        return True

    def connection(self, *args: Any, **options: Any) -> Any:
        """As SQLAlchemy's. What is read on it directly is not repeated elsewhere."""
        connection = super().connection(*args, **options)
        self._has_read = True
        return connection

    def _may_have_run(self, checkout: Checkout) -> bool:
        # A server that was lost before it answered has shown nothing: the next one need not be ahead of it.
        return self._has_read or not checkout.is_lost


def with_methods(kind: type[_RoutedSession], own: type[Session]) -> type[Any]:
    """A class of sessions that has the methods of ``own``, too, such as SQLModel's Session.

    Raises:
        SettingsError: ``own`` is no subclass of Session.
    """
    if own is Session:
        return kind
    if not (isinstance(own, type) and issubclass(own, Session)):
        raise SettingsError(f"class_ is {own!r}: pass a subclass of sqlalchemy.orm.Session")
    methods: dict[str, Any] = {}
    if issubclass(kind, ReadSession) and (exec_ := getattr(own, "exec", None)) is not None:
        # SQLModel's way to execute: what a read does when its server is lost is done around it as well.
        def exec(self: Any, *args: Any, **options: Any) -> Any:
            return self._run(partial(exec_, self), args, options)

        methods["exec"] = exec
    return type(kind.__name__, (kind, own), methods)
