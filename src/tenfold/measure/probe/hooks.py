"""Wrappers around a library's methods that time a round trip to the database.

A statement that SQLAlchemy or Django sends through a driver is recorded by their hooks, with their caller, so
the driver's own hook leaves it out: it looks at the module that called it.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from types import FrameType
from typing import Any

from tenfold.measure.probe.recorder import Recorder

Text = Callable[[tuple[Any, ...]], str]

_OUTER = ("sqlalchemy.", "django.", "tenfold.measure.probe.")


class Hooks:
    """The wrapped methods of one library, and the recorder that receives their records.

    Args:
        database: the kind of database, of a method's arguments.
    """

    def __init__(self, database: Text) -> None:
        self.database = database
        self.recorder: Recorder | None = None

    def wrap(self, owner: Any, name: str, text: Text, *, outermost: bool = False) -> None:
        """Time a method that waits for the database.

        Args:
            owner: the class or module that defines it; where it does not, nothing is wrapped.
            name: of the method.
            text: of the arguments, the object included: the statement.
            outermost: also record calls that come from SQLAlchemy and Django.
        """
        original = _function(owner, name)
        if original is None:
            return

        def call(*args: Any, **named: Any) -> Any:
            recorder = self.recorder
            frame = sys._getframe(1)
            if recorder is None or not recorder.is_on or not (outermost or _is_outermost(frame)):
                return original(*args, **named)
            started, rows, request = perf_counter(), 0, recorder.enter_round_trip()
            try:
                result = original(*args, **named)
                rows = returned_rows(args[0], result)
                return result
            finally:
                recorder.leave_round_trip(request)
                recorder.record_statement(
                    text(args), frame, perf_counter() - started, database=self.database(args), rows=rows
                )

        self._replace(owner, name, original, call)

    def wrap_async(self, owner: Any, name: str, text: Text) -> None:
        """Time a coroutine function; see :meth:`wrap`."""
        original = _function(owner, name)
        if original is None:
            return

        def call(*args: Any, **named: Any) -> Awaitable[Any]:
            recorder = self.recorder
            frame = sys._getframe(1)
            awaitable: Awaitable[Any] = original(*args, **named)
            if recorder is None or not recorder.is_on or not _is_outermost(frame):
                return awaitable
            return self._timed(recorder, awaitable, args, text(args), frame)

        self._replace(owner, name, original, call)

    async def _timed(
        self,
        recorder: Recorder,
        awaitable: Awaitable[Any],
        args: tuple[Any, ...],
        statement: str,
        frame: FrameType,
    ) -> Any:
        started, rows, request = perf_counter(), 0, recorder.enter_round_trip()
        try:
            result = await awaitable
            rows = returned_rows(args[0] if args else None, result)
            return result
        finally:
            seconds = perf_counter() - started
            recorder.leave_round_trip(request)
            recorder.record_statement(statement, frame, seconds, database=self.database(args), rows=rows)

    def _replace(self, owner: Any, name: str, original: Any, call: Any) -> None:
        for attribute in ("__name__", "__qualname__", "__doc__", "__module__", "__wrapped__"):
            value = original if attribute == "__wrapped__" else getattr(original, attribute, None)
            setattr(call, attribute, value)
        call._tenfold = True
        setattr(owner, name, classmethod(call) if isinstance(vars(owner)[name], classmethod) else call)


def _function(owner: Any, name: str) -> Any:
    """Return the function behind a method, a class method too; None when there is none or it is wrapped."""
    found = vars(owner).get(name)
    found = found.__func__ if isinstance(found, classmethod) else found
    return None if hasattr(found, "_tenfold") else found


def returned_rows(cursor: Any, result: Any) -> int:
    """Return the rows that an execution returned or changed, where the driver tells; else 0."""
    if isinstance(result, list):
        return len(result)
    try:
        return max(int(getattr(cursor, "rowcount", 0)), 0)
    except Exception:  # a cursor that is closed, or has no such number
        return 0


def first_argument(args: tuple[Any, ...]) -> str:
    """Return the statement that a method takes first: as text, bytes, or psycopg's ``SQL``."""
    return statement_text(args[1]) if len(args) > 1 else "(unknown)"


def statement_text(query: Any) -> str:
    """Return a query as text."""
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    return query if isinstance(query, str) else f"({type(query).__name__})"


def always(statement: str) -> Text:
    """Return ``statement`` for any arguments."""
    return lambda args: statement


def _is_outermost(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__") or ""
    return not module.startswith(_OUTER)
