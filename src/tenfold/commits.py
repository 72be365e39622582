"""Actions that wait for a commit of SQLAlchemy's sessions: run after it, dropped on rollback."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

from tenfold.errors import DependencyError

try:
    from sqlalchemy import event
    from sqlalchemy.engine import Connection
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import Session, SessionTransaction
except ImportError:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[database]'") from None

__all__ = ["after_commit", "find_action", "sync_session"]

_KEY = "tenfold after commit"


def sync_session(session: Any) -> Session:
    """The Session inside of an AsyncSession or a scoped session; a Session as it is.

    Raises:
        TypeError: it is none of them.
    """
    found = getattr(session, "sync_session", session)
    if not isinstance(found, Session) and callable(getattr(found, "registry", None)):
        found = found.registry()
        found = getattr(found, "sync_session", found)
    if not isinstance(found, Session):
        raise TypeError(
            f"a {type(session).__name__} has no event after its commit: pass a Session or an AsyncSession"
        )
    return found


def after_commit(session: Any, action: Callable[[], object], *, key: Hashable = None) -> None:
    """Run ``action`` once, after the session's transaction has been committed; never after a rollback.

    Also after a COMMIT that failed, whose outcome may be unknown. What was asked for inside of a savepoint
    that is rolled back runs all the same when the transaction is committed. The transaction is over then: the
    action cannot use the session. Under an AsyncSession it runs where SQLAlchemy's ``await_only`` may be
    used.

    Args:
        session: a Session, an AsyncSession or a scoped one; outside of a transaction it waits for its next.
        key: replaces the action that waits under the same key.
    """
    of_session = sync_session(session)
    waiting: _Waiting | None = of_session.info.get(_KEY)
    if waiting is None:
        waiting = of_session.info[_KEY] = _Waiting(of_session)
    waiting.actions[object() if key is None else key] = action


def find_action(session: Session, key: Hashable) -> Callable[[], object] | None:
    """The action that waits for this session's commit under a key."""
    waiting: _Waiting | None = session.info.get(_KEY)
    return waiting.actions.get(key) if waiting is not None else None


class _Waiting:
    """The actions of one session. Its listeners run after those of a class, which the router's are."""

    def __init__(self, session: Session) -> None:
        self.actions: dict[Hashable, Callable[[], object]] = {}
        self._is_sent = False  # COMMIT, whatever became of it
        event.listen(session, "before_commit", self._watch_connection)
        event.listen(session, "after_commit", self._note_commit)
        event.listen(session, "after_transaction_end", self._end)

    def _watch_connection(self, session: Session) -> None:
        if not self.actions or session.in_nested_transaction():
            return
        with suppress(SQLAlchemyError):  # a session with an engine for each class has no connection
            event.listen(session.connection(), "commit", self._note_sent)

    def _note_sent(self, _: Connection) -> None:
        self._is_sent = True

    def _note_commit(self, session: Session) -> None:
        self._is_sent = self._is_sent or not session.in_nested_transaction()

    def _end(self, _: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        actions, self.actions = self.actions, {}
        is_sent, self._is_sent = self._is_sent, False
        if is_sent:
            for action in actions.values():
                action()
