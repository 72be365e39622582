"""A statement ends on the server when the request's deadline does: ``statement_timeout`` from what is left.

Setting it costs a round trip. So the time left is rounded up to one of eight steps a decade, and a connection
that carries the right step already is left as it is: requests with one and the same deadline find it there.
A statement may therefore run a third longer than the deadline allows. Once less than half of a timeout is
left, the transaction gets a shorter one before its next statement. The connection's own limit, when it has a
shorter one, is not raised.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

from tenfold.deadlines import remaining_s

_CANCELED = "57014"  # query_canceled

LIBPQ = frozenset({"psycopg", "psycopg_async", "psycopg2"})  # drivers whose sessions can carry it
STEPS = 8  # a decade; each step is a third more than the one before

CARRIED = "tenfold.statement_timeout_ms"  # in a connection's info: what it carries for a deadline
_OWN = "tenfold.statement_timeout_own_ms"  # and what it carried at first


def timeout_ms(left_s: float, *, own_ms: int) -> int:
    """The step for what is left, at least 1 ms; the connection's own limit where that is less (0 is none)."""
    left_ms = max(left_s * 1000, 1.0)
    step = math.ceil(round(10 ** (math.ceil(round(STEPS * math.log10(left_ms), 6)) / STEPS), 3))
    return min(step, own_ms) if own_ms else step


def shorter_ms(own_ms: int, most_s: float) -> int:
    """The shorter of two limits, each of which may be none: 0 and infinity."""
    if math.isinf(most_s):
        return own_ms
    most_ms = max(math.ceil(most_s * 1000), 1)
    return min(own_ms, most_ms) if own_ms else most_ms


def fits(carried_ms: int | None, left_s: float | None) -> bool:
    """Whether a session that carries this already suits a statement of somebody who has so much left.

    It may be as much as twice what is left, so that the timeout is not renewed with each statement. None is
    what the connection had at first.
    """
    if left_s is None or carried_ms is None:
        return left_s is None and carried_ms is None
    left_ms = max(left_s * 1000, 1.0)
    return left_ms <= carried_ms <= 2 * left_ms


def hung_up(dialect: Any, error: BaseException, connection: Any) -> bool:
    """Whether a driver's error means that the server has ended this connection, as SQLAlchemy knows it."""
    return isinstance(error, dialect.loaded_dbapi.Error) and dialect.is_disconnect(error, connection, None)


def ended_by_deadline(error: BaseException | None) -> bool:
    """Whether the server ended a statement because the request's time is over."""
    return getattr(error, "sqlstate", None) == _CANCELED and remaining_s() == 0


def settle(connection: Any, info: MutableMapping[Any, Any], *, most_s: float = math.inf) -> None:
    """Give a connection outside of any transaction the timeout of whoever takes it now, at most ``most_s``.

    The value stays with the session: behind a pool in transaction mode it would be someone else's. When this
    fails or is cancelled nobody knows what the session carries: the connection has to go.
    """
    left_s = remaining_s()
    if left_s is None and CARRIED not in info:
        return
    if _OWN not in info:
        info[_OWN] = _own_ms(connection)
    limit = info[_OWN] if left_s is None else shorter_ms(info[_OWN], most_s)
    wanted = limit if left_s is None else timeout_ms(left_s, own_ms=limit)
    if wanted != info.get(CARRIED, info[_OWN]):
        info[CARRIED] = wanted
        _outside(connection, f"SET statement_timeout = {wanted:d}")
    if left_s is None:
        del info[CARRIED]


def settle_transaction(connection: Any) -> None:
    """The same for the transaction that begins, or goes on, with this: exact, and always a round trip."""
    left_s = remaining_s()
    if left_s is not None:
        _run(connection, f"SET LOCAL statement_timeout = {max(math.ceil(left_s * 1000), 1):d}")


def _own_ms(connection: Any) -> int:
    rows = _outside(connection, "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
    return int(rows[0][0])


def _outside(connection: Any, statement: str) -> Any:
    """Runs a statement in no transaction, which a rollback would undo."""
    before = connection.autocommit
    connection.autocommit = True
    try:
        return _run(connection, statement)
    finally:
        connection.autocommit = before


def _run(connection: Any, statement: str) -> Any:
    cursor = connection.cursor()
    try:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None
    finally:
        cursor.close()
