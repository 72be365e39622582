"""The records of one worker process until the emitter fetches them. Bounded everywhere; never waits.

The event loop and worker threads write, the emitter's thread reads. There are no locks: a deque's ends and a
dictionary's entries are safe under the interpreter lock, and a lost increment when two threads of the *same*
request meet is cheaper than a lock for every statement.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from tenfold.asgi import mount_path, path_in_app, route_template
from tenfold.callsites import CallSite, CallSites
from tenfold.fingerprint import fingerprint
from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.stuck_lines import current_task, stuck_lines

REQUESTS = 5_000  # finished requests kept for the emitter; more are counted as dropped
BATCH = 2_000  # requests sent in one frame
GROUPS = 200  # statements kept apart in one request
STATEMENTS = 2_000  # (fingerprint, call site) pairs kept apart in one process
TEXTS = 4_096  # statement texts remembered; an app that writes values into its SQL makes ever new ones
ROUTES = 300
THREADS = 2_000  # of the server
RUNNING = 10_000
SQL = 20_000  # characters of one statement's text

_IDENTIFIER = re.compile(
    r"/(?:\d+|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(?=[a-f]*\d)[0-9a-f]{8,})(?=/|$)",
    re.IGNORECASE,
)


class RunningRequest(NamedTuple):
    """A request that has not finished."""

    request: probe_protocol.RequestRecord
    scope: Mapping[str, Any]
    root_path: str
    task: Any = None  # the asyncio task that runs it; None on another loop
    coroutine: Any = None  # of the app
    thread: int = 0  # of a WSGI request


class Recorder:
    """Requests and their statements, between the hooks that record them and the emitter that sends them."""

    def __init__(self, root: Path) -> None:
        self.is_on = False  # a collector listens; every hook checks this first
        self.current: ContextVar[probe_protocol.RequestRecord | None] = ContextVar(
            "tenfold_request", default=None
        )
        self.sites = CallSites(root)
        self.has_statements = False  # a statement or a pool has been recorded
        self.dropped = 0
        self.pool_kinds: set[str] = set()
        self.watched: set[str] = set()  # modules of libraries whose hooks are installed
        self.native_ids: dict[int, int] = {}  # thread → the kernel's number of it, of threads of the server
        self.endpoint_codes: dict[CodeType, int] = {}  # of endpoint functions → route
        self._running: dict[int, RunningRequest] = {}
        self._requests: deque[probe_protocol.RequestRecord] = deque()
        self._outside: probe_protocol.Executions = {}
        self._routes: dict[tuple[str, str], int] = {}
        self._route_texts: list[probe_protocol.RouteText] = []
        self._numbers: dict[tuple[str, CallSite], int] = {}
        self._texts: dict[tuple[str, CallSite], int] = {}
        self._statement_texts: list[probe_protocol.StatementText] = []
        self._next = itertools.count(1)
        self._sent_routes = self._sent_statements = self._sent_dropped = 0

    def start(self) -> None:
        """Start recording for a new collector: all texts are sent again, older records are discarded."""
        self._requests.clear()
        self._outside = {}
        self._sent_routes = self._sent_statements = 0
        self._sent_dropped = self.dropped
        self.is_on = True

    def stop(self) -> None:
        """Stop recording."""
        self.is_on = False

    def record_statement(
        self, sql: str, frame: FrameType | None, seconds: float, *, database: str = "", rows: int = 0
    ) -> None:
        """Record a round trip to the database, or to another service.

        Args:
            sql: as the driver got it.
            frame: where the search for the user's line starts.
            seconds: how long it took.
            database: its kind, as SQLAlchemy names dialects: ``postgresql``; ``http`` for a call.
            rows: that it returned or changed, where that is known.
        """
        self.has_statements = self.has_statements or database != probe_protocol.HTTP
        request = self.current.get()
        running = request is not None and request.duration_s < 0
        executions = request.executions if running and request is not None else self._outside
        key = (sql, self.sites.find(frame))
        number = self._texts.get(key) or self._number_statement(key, database)
        if running and len(executions) > GROUPS:
            number = probe_protocol.OTHER
        entry = executions.get(number)
        if entry is None:
            executions[number] = [1, seconds, max(rows, 0)]
        else:
            entry[0] += 1
            entry[1] += seconds
            entry[2] += max(rows, 0)

    def enter_round_trip(self) -> probe_protocol.RequestRecord | None:
        """Note that the current request waits for its database; return it for :meth:`leave_round_trip`."""
        request = self.current.get()
        if request is not None:
            request._round_trip = "db"
            request._thread = threading.get_ident()
        return request

    def leave_round_trip(self, request: probe_protocol.RequestRecord | None) -> None:
        """Note that a request has its response."""
        if request is not None:
            request._round_trip = ""
            if not request._holds:
                request._thread = 0

    def begin_request(
        self,
        request: probe_protocol.RequestRecord,
        scope: Mapping[str, Any],
        root_path: str,
        *,
        coroutine: Any = None,
        thread: int = 0,
    ) -> None:
        """Remember a request until it ends: one that never does has to be seen as well."""
        if thread and thread not in self.native_ids and len(self.native_ids) < THREADS:
            self.native_ids[thread] = threading.get_native_id()
        task = None if thread else current_task()
        if len(self._running) >= RUNNING:  # a server that does not close its responses
            self._running.pop(next(iter(self._running), 0), None)
        self._running[id(request)] = RunningRequest(request, scope, root_path, task, coroutine, thread)

    def begin_response(self, request: probe_protocol.RequestRecord) -> None:
        """Note that a response begins: one that streams for minutes is not stuck."""
        request._responds = True

    def running(self) -> list[RunningRequest]:
        """Return the requests that have not finished."""
        return list(self._running.values())

    def route_of(self, running: RunningRequest) -> int:
        """Return the number of a running request's route, as far as it is known by now."""
        return self._route(running.scope, running.root_path)

    def record_request(
        self, request: probe_protocol.RequestRecord, scope: Mapping[str, Any], root_path: str
    ) -> None:
        """Record a request that the app has finished; its route is known only now."""
        self.stop_clock(request)
        self._running.pop(id(request), None)
        request.route = self._route(scope, root_path)
        if len(self._requests) < REQUESTS:
            self._requests.append(request)
        else:
            self.dropped += 1

    def stop_clock(self, request: probe_protocol.RequestRecord) -> None:
        """Set the duration at the last byte: later work (background tasks) does not make the client wait."""
        if request.duration_s < 0:
            request.duration_s = time.perf_counter() - request.started

    def drain(self, seconds: float) -> probe_protocol.Batch:
        """Return everything since the last call. Texts are read last: no number is sent before its text."""
        unfinished, lines = self._unfinished()
        requests = [self._requests.popleft() for _ in range(min(len(self._requests), BATCH))]
        outside, self._outside = self._outside, {}
        dropped, routes, statements = self.dropped, len(self._route_texts), len(self._statement_texts)
        batch = probe_protocol.Batch(
            seconds=seconds,
            dropped=dropped - self._sent_dropped,
            has_statements=self.has_statements,
            routes=self._route_texts[self._sent_routes : routes],
            statements=self._statement_texts[self._sent_statements : statements],
            requests=requests,
            outside=outside,
            unfinished=unfinished,
            unfinished_at=lines,
            pool_kinds=sorted(self.pool_kinds),
        )
        self._sent_dropped, self._sent_routes, self._sent_statements = dropped, routes, statements
        return batch

    def _unfinished(self) -> tuple[list[probe_protocol.UnfinishedRecord], dict[str, int]]:
        """Return the requests that have run for a second or more, by route, and the lines they stand on."""
        now = time.perf_counter()
        by_route: dict[int, probe_protocol.UnfinishedRecord] = {}
        tasks = []
        for running in list(self._running.values()):
            request = running.request
            age = now - request.started
            if age < probe_protocol.UNFINISHED_S or request.duration_s >= 0 or request._responds:
                continue
            number = self._route(running.scope, running.root_path)
            record = by_route.setdefault(number, probe_protocol.UnfinishedRecord(number))
            record.count += 1
            record.longest_s = max(record.longest_s, age)
            if len(record.started) < probe_protocol.UNFINISHED:
                record.started.append(request.started)
            if request.waits_since:
                record.waiting += 1
            record.wait_s += request.pool_wait_s + (now - request.waits_since if request.waits_since else 0.0)
            tasks.append(running.thread or running.task)
        return list(by_route.values()), stuck_lines(self.sites, tasks) if by_route else {}

    def _route(self, scope: Mapping[str, Any], root_path: str) -> int:
        method = str(scope.get("method", ""))
        path = _route_name(scope, root_path)
        return self._routes.get((method, path)) or self._number_route(method, path, scope)

    def _number_statement(self, key: tuple[str, CallSite], database: str) -> int:
        sql, site = key
        text = sql if database == probe_protocol.HTTP else fingerprint(sql)
        number = self._numbers.get((text, site))
        if number is None:
            if len(self._numbers) >= STATEMENTS:
                return probe_protocol.OTHER
            mine = next(self._next)
            number = self._numbers.setdefault((text, site), mine)
            if number == mine:
                self._statement_texts.append(
                    probe_protocol.StatementText(
                        number, _sendable(text), _sendable(site.where), _sendable(sql[:SQL]), database
                    )
                )
        if len(self._texts) >= TEXTS:
            self._texts.clear()
        self._texts[key] = number
        return number

    def _number_route(self, method: str, path: str, scope: Mapping[str, Any]) -> int:
        if len(self._routes) >= ROUTES:
            return probe_protocol.OTHER
        mine = next(self._next)
        number = self._routes.setdefault((method, path), mine)
        if number == mine:
            self._note_endpoint(scope.get("endpoint"), number)
            endpoint = self.sites.definition(scope.get("endpoint"))
            where = _sendable(endpoint.where)
            self._route_texts.append(
                probe_protocol.RouteText(number, _sendable(method), _sendable(path), where)
            )
        return number

    def _note_endpoint(self, endpoint: Any, number: int) -> None:
        while hasattr(endpoint, "__wrapped__"):
            endpoint = endpoint.__wrapped__
        code = getattr(endpoint, "__code__", None)
        if code is not None:
            self.endpoint_codes.setdefault(code, number)


def _sendable(text: str) -> str:
    """Return the text with ``?`` for what UTF-8 cannot encode: it would end the sending thread."""
    return text.encode(errors="replace").decode()


def _route_name(scope: Mapping[str, Any], root_path: str) -> str:
    """Return the route's template, or else the path with ``{id}`` for numbers, UUIDs and long hex."""
    if (template := route_template(scope, root_path)) is not None:
        return template
    if mounted := mount_path(scope, root_path):
        return f"{mounted}/*"
    return _IDENTIFIER.sub("/{id}", path_in_app({"path": scope.get("path", ""), "root_path": root_path}))[
        :200
    ]
