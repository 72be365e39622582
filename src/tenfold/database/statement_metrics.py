"""How long statements take: OpenTelemetry's ``db.client.operation.duration``, for SQLAlchemy's engines."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from tenfold import metrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["measure_statements"]

_OPERATIONS = frozenset(["SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH", "COPY", "CALL"])
_FIRST_WORD = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*([A-Za-z]+)", re.S)
_STARTED = "tenfold statement started"


def measure_statements(engine: Any, *, registry: CollectorRegistry | None = None) -> None:
    """Measure each statement of an Engine or AsyncEngine, from the driver's call to its answer.

    By kind of statement only: texts would be too many label values. For a router:
    ``router.configure_engines(measure_statements)``.

    Args:
        engine: of any database.
        registry: of prometheus-client; None is the default one.

    Raises:
        DependencyError: prometheus-client is not installed.
    """
    target = getattr(engine, "sync_engine", engine)
    histogram: Any = metrics.instrument(metrics.STATEMENT_SECONDS, registry=registry)
    system = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite"}.get(
        target.dialect.name, "other_sql"
    )
    children = {name: histogram.labels(system, name) for name in (*sorted(_OPERATIONS), "other")}

    def begin(connection: Any, *_: Any) -> None:
        connection.info[_STARTED] = time.perf_counter()

    def end(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        started = connection.info.pop(_STARTED, None)
        if started is not None:
            children[_operation(statement)].observe(time.perf_counter() - started)

    def fail(context: Any) -> None:
        if context.connection is not None and context.statement is not None:
            end(context.connection, None, context.statement)

    event.listen(target, "before_cursor_execute", begin)
    event.listen(target, "after_cursor_execute", end)
    event.listen(target, "handle_error", fail)


def _operation(statement: str) -> str:
    found = _FIRST_WORD.match(statement)
    word = found[1].upper() if found else ""
    return word if word in _OPERATIONS else "other"
