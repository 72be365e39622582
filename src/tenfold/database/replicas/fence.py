"""The fence for a cache: which state a load has shown, and what its readers have seen, as log positions.

cache = QueryCache(redis_url, fence=router.fence)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from tenfold.database.replicas.checkout import Checkout, ServerLostError
from tenfold.database.replicas.consistency import ConsistencyTracker
from tenfold.database.replicas.freshness import Freshness, is_pinned
from tenfold.database.replicas.servers import Cluster
from tenfold.database.replicas.sessions import WriteSession
from tenfold.errors import DeadlineExceededError, NoReplicaError, PositionError
from tenfold.positions import Token, parse_position

__all__ = ["LoadWatch", "ReadFence", "watch_checkout"]

_watching: ContextVar[LoadWatch | None] = ContextVar("load of a cache", default=None)


class LoadWatch:
    """What was found out of the checkouts of one load.

    Attributes:
        token: the lowest position that the connections had reached before they were used; None if unknown.
        on_primary: whether one was to the primary.
        obstacle: why what was loaded must not be kept; empty if it may.
    """

    __slots__ = ("_has_unknown", "expires_at", "obstacle", "on_primary", "token")

    def __init__(self, *, expires_at: int) -> None:
        self.expires_at = expires_at
        self.token: Token | None = None
        self.on_primary = self._has_unknown = False
        self.obstacle = ""

    def add(self, checkout: Checkout) -> None:
        """Ask a connection for its position, before it is used."""
        self.on_primary = self.on_primary or checkout.server.is_primary
        try:
            position = checkout.query_position()
        except (ServerLostError, DeadlineExceededError):
            self.obstacle = "a server was lost"
            return
        if position is None:
            self.add_position(None)
        else:
            self.add_position(Token(position.system, position.timeline, position.position, self.expires_at))

    def add_position(self, token: Token | None) -> None:
        """Lower the position to one of a connection; None if that is not known."""
        if token is None:
            self._has_unknown, self.token = True, None
        elif not self._has_unknown:
            held = self.token
            if held is None or (token.timeline, token.position) < (held.timeline, held.position):
                self.token = token


def watch_checkout(checkout: Checkout) -> Checkout:
    """Add a new checkout to the load that runs in this context, if any."""
    if (watch := _watching.get()) is not None:
        try:
            watch.add(checkout)
        except BaseException:  # cancelled
            checkout.release()
            raise
    return checkout


class ReadFence:
    """The fence of one router.

    Args:
        acquire_primary: checks out a connection for reads on the primary, for asyncio if its argument is
            True.
    """

    def __init__(
        self,
        tracker: ConsistencyTracker,
        cluster: Cluster,
        *,
        pin_s: float,
        token_s: float,
        acquire_primary: Callable[[bool], Checkout],
    ) -> None:
        self._tracker, self._cluster = tracker, cluster
        self._pin_s, self._token_s = pin_s, token_s
        self._acquire_primary = acquire_primary

    @property
    def has_positions(self) -> bool:
        """Whether the database has positions, as far as is known."""
        return self._cluster.has_positions

    def token(self) -> Token | None:
        """What the reader of this context has seen; without positions only for a while after a write."""
        token = self._tracker.token()
        if (
            token is not None
            and not self.has_positions
            and not is_pinned(token, now=time.time(), pin_s=self._pin_s)
        ):
            return None
        return token

    def commit_token(self, session: Any) -> Token | None:
        """A position at or after the commit that a session has just made; unsure if the primary does not say.

        Args:
            session: None, or one that is not this router's, has the primary asked.
        """
        if not self.has_positions:
            return None
        if isinstance(session, WriteSession):
            return self._tracker.token()
        return self.primary_token() or Token.unsure(expires_at=self._expiry())

    def record_hit(self, token: Token) -> None:
        """Record that this context's reader has seen the state at a position."""
        self._tracker.record_state(replace(token, expires_at=self._expiry()))

    def primary_token(self) -> Token | None:
        """The primary's position now; None if it does not say. For asyncio inside of a greenlet."""
        from sqlalchemy.util.concurrency import in_greenlet

        if not self.has_positions:
            return None
        try:
            checkout = self._acquire_primary(in_greenlet())
        except (NoReplicaError, ServerLostError, SQLAlchemyError, DeadlineExceededError, OSError):
            return None
        try:
            return checkout.visible_token(expires_at=self._expiry())
        finally:
            checkout.release()

    @contextmanager
    def watch_load(self, required: Token | None) -> Iterator[LoadWatch]:
        """Watch the connections that a block uses; reads go to servers that have reached ``required``."""
        watch = LoadWatch(expires_at=self._expiry())
        mark = _watching.set(watch)
        try:
            with self._tracker.require(required):
                yield watch
        finally:
            _watching.reset(mark)

    def check_session(self, watch: LoadWatch, session: Any, required: Token | None) -> None:
        """Take the connection that a session already holds into the watch."""
        checkout: Checkout | None = getattr(session, "_checkout", None)
        if checkout is None:
            if session.in_transaction():
                watch.add_position(None)  # not this router's: taken to be on the primary
            return
        if checkout.server.is_primary:
            watch.on_primary = True
            watch.add_position(self._transaction_token(session, checkout))
        elif session._source.isolation is not None:
            watch.obstacle = "the session reads from a snapshot"
        elif checkout.freshness_for(required) is not Freshness.FRESH:
            watch.obstacle = "the session's replica is behind"
        else:
            watch.add(checkout)

    def _transaction_token(self, session: Any, checkout: Checkout) -> Token | None:
        """The primary's position, asked within a transaction that is open there."""
        known = checkout.position
        if known is None or not self.has_positions:
            return None
        try:
            row = session.connection().exec_driver_sql("SELECT pg_current_wal_insert_lsn()::text").one()
            return Token(known.system, known.timeline, parse_position(row[0]), self._expiry())
        except (SQLAlchemyError, PositionError):
            return None

    def _expiry(self) -> int:
        return int(time.time() + self._token_s)
