"""PostgreSQL's own view of its sessions: what each waits for, and who blocks whom.

Sampled from ``pg_stat_activity`` some fifteen times a second by a session of its own. A session's kind:

- ``cpu``: active and waiting for nothing; ``lock``: for another transaction (row, tuple, relation, advisory);
- ``wal``: for the commit's flush or a synchronous replica; ``io``: for data files; ``other``: anything else;
- ``open``: idle in a transaction.

``pg_blocking_pids`` is asked for sessions that wait for a lock only: it takes the lock manager's own locks.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tenfold.errors import DependencyError, MeasurementError
from tenfold.fingerprint import fingerprint
from tenfold.measure.machine.sampling_thread import SamplingThread

INTERVAL_S = 1 / 15
SAMPLES = 20_000  # kept
TIMEOUT_S = 2
WAL = frozenset({"WALSync", "WalSync", "WALWrite", "WalWrite", "SyncRep", "WalInsert"})
_QUERY = """
SELECT pid, state, coalesce(wait_event_type, ''), coalesce(wait_event, ''), left(query, 4000),
       coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0)::float,
       CASE WHEN wait_event_type = 'Lock' THEN pg_blocking_pids(pid) ELSE '{}' END
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND datname = current_database() AND state <> 'idle'
  AND backend_type IN ('client backend', 'parallel worker')
"""


@dataclass(frozen=True, slots=True)
class Session:
    """One session in one sample."""

    kind: str
    statement: str  # fingerprint of the running or last statement
    event: str
    blocker: str = ""  # of a waiting one: the statement of the session at the root of the queue
    blocker_kind: str = ""


@dataclass(frozen=True, slots=True)
class DatabaseStats:
    """Sessions over a window: mean numbers of sessions, by kind."""

    samples: int = 0
    sessions: dict[str, float] = field(default_factory=dict)
    statements: dict[tuple[str, str], float] = field(default_factory=dict)  # (kind, statement) → sessions
    blockers: dict[tuple[str, str, str], float] = field(
        default_factory=dict
    )  # (waiting statement, root's statement, root's kind) → waiting sessions

    @property
    def active(self) -> float:
        """Mean number of sessions that execute something, waiting ones included."""
        return sum(count for kind, count in self.sessions.items() if kind != "open")


class DatabaseView(SamplingThread):
    """Sample the sessions of a database while entered.

    Args:
        url: of the database, for a role that may read ``pg_stat_activity``.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._samples: deque[tuple[float, tuple[Session, ...]]] = deque(maxlen=SAMPLES)
        self.failure = ""
        super().__init__(name="tenfold-database")

    def during(self, windows: Sequence[tuple[float, float]]) -> DatabaseStats:
        """Return the sessions of the samples in some windows of ``time.monotonic()``."""
        samples = [
            sessions
            for at, sessions in list(self._samples)
            if any(start <= at <= end for start, end in windows)
        ]
        return summarize(samples)

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # it ends with the database; the measurement goes on without it
            self.failure = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            )

    def _watch(self) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise DependencyError("psycopg is not installed; install tenfold[database]") from error
        texts: dict[str, str] = {}
        while not self._stopping.is_set():
            try:
                with psycopg.connect(
                    self._url, autocommit=True, connect_timeout=TIMEOUT_S, application_name="tenfold measure"
                ) as connection:
                    connection.execute("SET statement_timeout = '2s'")
                    while not self._stopping.wait(INTERVAL_S):
                        self._samples.append((time.monotonic(), _read(connection, texts)))
            except psycopg.OperationalError as error:  # it restarts, or has no connection left
                self.failure = str(error).strip().splitlines()[0]
                self._stopping.wait(1.0)
            else:
                return
            if not self._samples and self.failure:
                raise MeasurementError(self.failure)


def summarize(samples: Sequence[Sequence[Session]]) -> DatabaseStats:
    """Return the mean numbers of sessions by kind and statement."""
    if not samples:
        return DatabaseStats()
    kinds: Counter[str] = Counter()
    statements: Counter[tuple[str, str]] = Counter()
    blockers: Counter[tuple[str, str, str]] = Counter()
    for sessions in samples:
        for one in sessions:
            kinds[one.kind] += 1
            statements[one.kind, one.statement] += 1
            if one.blocker_kind:
                blockers[one.statement, one.blocker, one.blocker_kind] += 1
    count = len(samples)
    return DatabaseStats(
        samples=count,
        sessions={kind: number / count for kind, number in kinds.items()},
        statements={key: number / count for key, number in statements.most_common(200)},
        blockers={key: number / count for key, number in blockers.most_common(50)},
    )


def _read(connection: Any, texts: dict[str, str]) -> tuple[Session, ...]:
    rows = {row[0]: row[1:] for row in connection.execute(_QUERY).fetchall()}
    return tuple(_session(pid, rows, texts) for pid in rows)


def _session(pid: int, rows: dict[int, Any], texts: dict[str, str]) -> Session:
    state, kind, event, query, _, blocked_by = rows[pid]
    blocker = _root(pid, rows) if blocked_by else None
    root = rows.get(blocker) if blocker is not None else None
    return Session(
        kind=_kind(state, kind, event, query),
        statement=_text(query, texts),
        event=event,
        blocker=_text(root[3], texts) if root else "",
        blocker_kind=_kind(*root[:4]) if root else "",
    )


def _root(pid: int, rows: dict[int, Any]) -> int | None:
    """Return the session at the head of the queue in which a session waits."""
    seen = {pid}
    while pid in rows and rows[pid][5]:
        ahead = next((one for one in rows[pid][5] if one in rows and one not in seen), None)
        if ahead is None:
            break
        seen.add(ahead)
        pid = ahead
    return pid if len(seen) > 1 else None


def _kind(state: str, wait: str, event: str, query: str) -> str:
    if state.startswith("idle in transaction"):
        return "open"
    if wait == "Lock":
        return "lock"
    if event in WAL or (wait == "LWLock" and query.upper().startswith("COMMIT")):
        return "wal"
    if wait == "IO":
        return "io"
    return "cpu" if not wait else "other"


def _text(query: str, texts: dict[str, str]) -> str:
    found = texts.get(query)
    if found is None:
        if len(texts) > 2_000:
            texts.clear()
        found = texts[query] = fingerprint(query)
    return found
