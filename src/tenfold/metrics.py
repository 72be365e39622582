"""Metrics: the definition of every metric that tenfold exports, and ``/metrics`` for any ASGI app.

A thin layer over prometheus-client, which is imported when the first metric is used. If
PROMETHEUS_MULTIPROC_DIR is set before that, each worker writes its values to files in that folder and any
worker exports those of all. The folder belongs to one machine and one run: empty it before a start. Counters
of ended workers are kept, because they must not decrease, so it grows by two files of 64 KiB with every
restart of a worker.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from tenfold.asgi import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    ends_answer,
    path_in_app,
    route_template,
    send_answer,
)
from tenfold.errors import DependencyError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.core import Metric as Family

    Instrument = Counter | Gauge | Histogram

__all__ = [
    "METRICS",
    "REQUEST_SECONDS",
    "Metric",
    "MetricsEndpoint",
    "MetricsMiddleware",
    "exposition",
    "instrument",
]


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(frozen=True, slots=True)
class Metric:
    """One exported metric. Every label has few values: a route's template, not a path."""

    name: str  # ends in _total for a counter, else in its unit; db_client_… are OpenTelemetry's names
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()
    multiprocess_mode: Literal["livesum", "livemax", "livemin"] = (
        "livesum"  # of a gauge over several processes
    )


# OpenTelemetry's stable name and labels. The objective is a bucket boundary: 0.2 s unless told otherwise.
REQUEST_SECONDS = Metric(
    "http_server_request_duration_seconds",
    "histogram",
    ("http_request_method", "http_route", "http_response_status_code"),
    "Time from the arrival of a request to the last byte of its response; status 499 means that the client "
    "disconnected first.",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.5, 5.0, 10.0),
)
# The process: multi-process mode of prometheus-client has no metrics of its own for it.
CPU_SECONDS = Metric("tenfold_cpu_seconds_total", "counter", (), "CPU time of the workers.")
WORKERS = Metric("tenfold_workers", "gauge", (), "Worker processes that serve.")
EVENT_LOOP_LAG = Metric(
    "tenfold_event_loop_lag_seconds",
    "gauge",
    (),
    "The latest that the event loop came to a timer in five seconds.",
    multiprocess_mode="livemax",
)
THREADS_BUSY = Metric("tenfold_threads_busy", "gauge", (), "Threads of the pool for `def` endpoints at work.")
THREADS_MAX = Metric("tenfold_threads_max", "gauge", (), "Threads that this pool has at most.")
CONCURRENCY_LIMIT = Metric(
    "tenfold_concurrency_limit", "gauge", (), "Requests that the limiter allows at once."
)
CONCURRENCY_IN_FLIGHT = Metric(
    "tenfold_concurrency_in_flight", "gauge", (), "Requests that the limiter has admitted and that still run."
)
SHED = Metric(
    "tenfold_shed_total",
    "counter",
    ("reason", "priority", "mode"),
    "Requests refused by the limiter; mode shadow counts those that it would have refused.",
)
RATE_LIMITED = Metric(
    "tenfold_rate_limited_total",
    "counter",
    ("policy", "mode"),
    "Requests beyond their rate limit; mode open or closed: allowed or refused because the store was down.",
)
# Connection pools, under OpenTelemetry's names; the pool is "host:port/database" unless it has a name.
_POOL = "db_client_connection_pool_name"
_POOL_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
POOL_CONNECTIONS = Metric(
    "db_client_connection_count",
    "gauge",
    (_POOL, "db_client_connection_state"),
    "Open connections, used or idle.",
)
POOL_SIZE = Metric("db_client_connection_idle_max", "gauge", (_POOL,), "Connections that the pool keeps.")
POOL_MAX = Metric("db_client_connection_max", "gauge", (_POOL,), "Connections that the pool opens at most.")
POOL_OVERFLOW = Metric(
    "tenfold_pool_overflow", "gauge", (_POOL,), "Open connections beyond those that are kept."
)
POOL_WAITING = Metric(
    "db_client_connection_pending_requests", "gauge", (_POOL,), "Checkouts that are waiting for a connection."
)
POOL_TIMEOUTS = Metric(
    "db_client_connection_timeouts_total", "counter", (_POOL,), "Checkouts that timed out."
)
POOL_REFUSED = Metric(
    "tenfold_pool_refused_total", "counter", (_POOL,), "Checkouts refused because too many are waiting."
)
POOL_WAIT_SECONDS = Metric(
    "db_client_connection_wait_time_seconds",
    "histogram",
    (_POOL,),
    "Time of a checkout, opening the connection included.",
    _POOL_BUCKETS,
)
POOL_USE_SECONDS = Metric(
    "db_client_connection_use_time_seconds",
    "histogram",
    (_POOL,),
    "Time from checkout to return of a connection.",
    _POOL_BUCKETS,
)
STATEMENT_SECONDS = Metric(
    "db_client_operation_duration_seconds",
    "histogram",
    ("db_system_name", "db_operation_name"),
    "Time of a statement, from the driver's call to its answer.",
    _POOL_BUCKETS,
)
# Replicas, by server: "host:port/database".
READS = Metric(
    "tenfold_reads_total",
    "counter",
    ("server", "outcome"),
    "Reads by how their server was found: no_token, known_fresh, asked_replica, waited_for_replica, primary.",
)
REPLICA_LAG_SECONDS = Metric(
    "tenfold_replica_lag_seconds",
    "gauge",
    ("server",),
    "Age of the oldest change that the replica lacks.",
    multiprocess_mode="livemax",
)
REPLICA_LAG_BYTES = Metric(
    "tenfold_replica_lag_bytes",
    "gauge",
    ("server",),
    "WAL that the replica has not replayed.",
    multiprocess_mode="livemax",
)
REPLICA_SERVING = Metric(
    "tenfold_replica_serving",
    "gauge",
    ("server",),
    "1 if the replica receives reads, else 0.",
    multiprocess_mode="livemin",
)
# The query cache, by function: "module.name".
CACHE_LOOKUPS = Metric(
    "tenfold_cache_lookups_total",
    "counter",
    ("function", "outcome"),
    "Lookups of the query cache: memory, redis and coalesced are hits, load is a miss, error a load "
    "without Redis.",
)
CACHE_LOAD_SECONDS = Metric(
    "tenfold_cache_load_seconds",
    "histogram",
    ("function",),
    "Time that a cached function took when it was called.",
    _POOL_BUCKETS,
)


def _of_queue(name: str, help: str) -> Metric:
    return Metric(name, "gauge", ("queue",), help)


# Background tasks, by queue: what the ledger says, the same in every process.
TASKS_WAITING = _of_queue("tenfold_tasks_waiting", "Tasks that could run and wait.")
TASKS_OLDEST_SECONDS = _of_queue("tenfold_tasks_oldest_seconds", "How long the oldest of them has waited.")
TASKS_RUNNING = _of_queue("tenfold_tasks_running", "Tasks that run.")
TASKS_RETRYING = _of_queue("tenfold_tasks_retrying", "Tasks that failed and wait for another attempt.")
TASKS_DEAD = _of_queue("tenfold_tasks_dead", "Tasks that failed for good.")
TASK_PROCESSES = _of_queue("tenfold_task_processes", "Processes of workers that give a sign of life.")
TASK_WAIT_SECONDS = _of_queue(
    "tenfold_task_wait_percentile_seconds",
    "95th percentile over five minutes of the time from when a task could run to its start.",
)
TASK_RUN_SECONDS = _of_queue(
    "tenfold_task_run_percentile_seconds",
    "95th percentile over five minutes of the time from start to end.",
)
METRICS: tuple[Metric, ...] = tuple(value for value in globals().copy().values() if isinstance(value, Metric))

# ------------------------------------------------------------------ registry

_instruments: WeakKeyDictionary[CollectorRegistry, dict[str, Instrument]] = WeakKeyDictionary()


def instrument(metric: Metric, *, registry: CollectorRegistry | None = None) -> Instrument:
    """Return the prometheus-client object of a metric, created once per registry (None: the default one).

    Raises:
        DependencyError: prometheus-client is not installed.
    """
    client = _client()
    registry = client.REGISTRY if registry is None else registry
    known = _instruments.setdefault(registry, {})
    if metric.name not in known:
        options = {"labelnames": metric.labels, "registry": registry}
        if metric.kind == "counter":
            known[metric.name] = client.Counter(metric.name, metric.help, **options)
        elif metric.kind == "gauge":
            # Only a "live" mode drops the values of ended workers; a sum over them would never decrease.
            options["multiprocess_mode"] = metric.multiprocess_mode
            known[metric.name] = client.Gauge(metric.name, metric.help, **options)
        else:
            options["buckets"] = metric.buckets or client.Histogram.DEFAULT_BUCKETS
            known[metric.name] = client.Histogram(metric.name, metric.help, **options)
    return known[metric.name]


def exposition(*, registry: CollectorRegistry | None = None, collectors: Sequence[Any] = ()) -> bytes:
    """Return all values in Prometheus' text format 0.0.4, those of ``collectors`` last.

    In multi-process mode these are the values of all workers; ``registry`` is ignored. It reads a few files
    for each worker that ever ran, which takes milliseconds: call it in a thread, not on the event loop. A
    worker whose process id has been reused counts as living.
    """
    client = _client()
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        registry = client.CollectorRegistry()
        registry.register(_Workers(Path(folder)))
    text: bytes = client.generate_latest(client.REGISTRY if registry is None else registry)
    if collectors:
        more = client.CollectorRegistry()
        for collector in collectors:
            more.register(collector)
        text += client.generate_latest(more)
    return text


class _Workers:
    """The merged values of all workers, without the gauges of those that ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterable[Family]:
        from prometheus_client.multiprocess import MultiProcessCollector

        files = [file for file in self.folder.glob("*.db") if self._has_values(file)]
        merge: Callable[[list[str]], Iterable[Family]] = MultiProcessCollector.merge
        return merge([str(file) for file in files])

    @staticmethod
    def _has_values(file: Path) -> bool:
        """Return False for a file without values yet, and for an ended worker's gauge, which is deleted."""
        kind, _, pid = file.stem.rpartition("_")
        if kind.startswith("gauge_live") and not _is_running(pid):
            file.unlink(missing_ok=True)
            return False
        try:
            return file.stat().st_size > 0
        except FileNotFoundError:
            return False


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _client() -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise DependencyError(
            "metrics need prometheus-client, which is not installed: pip install 'tenfold[measure]'"
        ) from None
    return prometheus_client


# ------------------------------------------------------------------ counting requests

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
_COUNTED = "tenfold.counted_in"  # in a scope: the counter of the middleware that counts the request
_CLIENT_DISCONNECTED = "499"  # nginx's status for it


class MetricsMiddleware:
    """Count and time the requests of an ASGI app by method, route and status.

    The route is the template that Starlette, FastAPI and others leave in ``scope["route"]``; requests without
    a route are ``other``, as is every route beyond ``max_routes``. WebSockets are not counted. Of
    several around one request, because a mounted app has its own, the outermost counts it.

    Args:
        registry: of prometheus-client; None is the default one.
        max_routes: routes with a label of their own.
        objective_s: the longest duration of a good request, seconds: a boundary of the histogram's buckets.
            The first middleware of a registry decides.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        registry: CollectorRegistry | None = None,
        max_routes: int = 200,
        objective_s: float = 0.2,
    ) -> None:
        self.app = app
        self.max_routes = max_routes
        self.routes: set[str] = set()
        buckets = tuple(sorted({*REQUEST_SECONDS.buckets, objective_s}))
        self.seconds: Any = instrument(replace(REQUEST_SECONDS, buckets=buckets), registry=registry)
        self._watch = _ProcessWatch(registry)
        self._children: dict[tuple[str, str, str], Any] = {}  # by label values: looking up costs more

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get(_COUNTED) is self.seconds:
            return await self.app(scope, receive, send)
        if self._watch.pid != os.getpid():
            self._watch.start()
        scope[_COUNTED] = self.seconds
        started = time.perf_counter()
        mounted_at = scope.get("root_path", "")
        status, ended = "500", 0.0  # the server responds with 500 when the app raises

        async def watch(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)
            if ends_answer(message):
                ended = time.perf_counter()  # background tasks do not make the client wait

        try:
            await self.app(scope, receive, watch)
        except asyncio.CancelledError:
            status = status if ended else _CLIENT_DISCONNECTED
            raise
        finally:
            self._record(scope, mounted_at, status, (ended or time.perf_counter()) - started)

    def _record(self, scope: Scope, mounted_at: str, status: str, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        labels = (method, self._route_label(route_template(scope, mounted_at) or _OTHER), status)
        if (child := self._children.get(labels)) is None:
            child = self._children[labels] = self.seconds.labels(*labels)
        child.observe(seconds)

    def _route_label(self, route: str) -> str:
        if route in self.routes:
            return route
        route = route.encode(errors="replace").decode()  # one that UTF-8 cannot encode would break /metrics
        if route not in self.routes and len(self.routes) >= self.max_routes:
            return _OTHER
        self.routes.add(route)
        return route


# ------------------------------------------------------------------ the process

_TICK_S, _TICKS = 0.25, 20  # twenty ticks, five seconds, are one value
_watched: WeakKeyDictionary[CollectorRegistry, int] = WeakKeyDictionary()  # the process that is watched


class _ProcessWatch:
    """Timers on the event loop of the first request: CPU time, lateness, threads. Once for each registry."""

    def __init__(self, registry: CollectorRegistry | None) -> None:
        self.pid = 0
        self._registry = registry

    def start(self) -> None:
        """Start in this process, which may be a fork of one in which it ran."""
        self.pid = os.getpid()
        registry = _client().REGISTRY if self._registry is None else self._registry
        if _watched.get(registry) == self.pid:
            return
        _watched[registry] = self.pid
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # trio
            return

        def make(metric: Metric) -> Any:
            return instrument(metric, registry=self._registry)

        self._cpu_seconds, self._lag = make(CPU_SECONDS), make(EVENT_LOOP_LAG)
        self._threads = _thread_limiter()
        if self._threads is not None:
            self._busy, self._most = make(THREADS_BUSY), make(THREADS_MAX)
        make(WORKERS).set(1)
        self._cpu_s, self._ticks, self._latest = 0.0, 0, 0.0
        self._report()
        self._wait()

    def _wait(self) -> None:
        self._due = self._loop.time() + _TICK_S
        self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        self._latest = max(self._latest, self._loop.time() - self._due)
        self._ticks += 1
        if self._ticks == _TICKS:
            self._report()
            self._ticks, self._latest = 0, 0.0
        self._wait()

    def _report(self) -> None:
        spent = time.process_time()
        self._cpu_seconds.inc(max(0.0, spent - self._cpu_s))
        self._cpu_s = spent
        self._lag.set(self._latest)
        if self._threads is not None:
            self._busy.set(self._threads.borrowed_tokens)
            self._most.set(self._threads.total_tokens)


def _thread_limiter() -> Any:
    """anyio's limiter of the threads in which Starlette and FastAPI run `def` endpoints."""
    anyio = sys.modules.get("anyio.to_thread")
    return None if anyio is None else anyio.current_default_thread_limiter()


# ------------------------------------------------------------------ /metrics


class MetricsEndpoint:
    """``/metrics`` for clients on this machine or in ``networks``; all others get 404.

    Alone it is an ASGI app to mount; around an ``app`` it answers ``path`` and passes all other requests on.
    The connection's peer has to be in ``networks``, and so has every address in X-Forwarded-For, X-Real-IP
    and Forwarded, because behind a proxy on this machine every peer is this machine. Anything else in these
    headers is refused, too. A proxy that adds none of them hides the client: close the path there as well. A
    peer without an address (a Unix socket) gets 404. ``collectors`` of prometheus-client are asked at each
    request, in multi-process mode, too; they say the same in every process.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        path: str = "/metrics",
        registry: CollectorRegistry | None = None,
        collectors: Sequence[Any] = (),
        networks: Sequence[str] = ("127.0.0.0/8", "::1/128"),
    ) -> None:
        self.app = app
        self.path = path
        self.registry = registry
        self.collectors = tuple(collectors)
        self.networks = [ipaddress.ip_network(network) for network in networks]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = scope["type"] == "http" and (self.app is None or path_in_app(scope) == self.path)
        if not answers and self.app is not None:
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not answered here")  # an ASGI app declines a lifespan so
        if not all(map(self._is_allowed, _callers(scope))):
            return await send_answer(send, 404, b"Not Found\n")
        if scope["method"] not in {"GET", "HEAD"}:
            return await send_answer(send, 405, b"Method Not Allowed\n", headers=[(b"allow", b"GET, HEAD")])
        body = await asyncio.to_thread(exposition, registry=self.registry, collectors=self.collectors)
        await send_answer(send, 200, body, content_type=CONTENT_TYPE, head_only=scope["method"] == "HEAD")

    def _is_allowed(self, caller: str) -> bool:
        try:
            address = ipaddress.ip_address(caller)
        except ValueError:
            return False
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain.version == network.version and plain in network for network in self.networks)


def _callers(scope: Scope) -> list[str]:
    """Return the peer and every address in the forwarding headers."""
    callers = [str((scope.get("client") or ("",))[0])]
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name.lower() in {b"x-forwarded-for", b"x-real-ip"}:
            callers += [_without_port(part) for part in text.split(",")]
        elif (
            name.lower() == b"forwarded"
        ):  # RFC 7239 section 4; an element without for= is "", which is refused
            callers += [_forwarded_for(element) for element in text.split(",")]
    return callers


def _forwarded_for(element: str) -> str:
    match = re.search(r'(?:^|;)\s*for\s*=\s*("?)([^";]*)\1\s*(?:;|$)', element, re.IGNORECASE)
    return _without_port(match[2]) if match else ""


def _without_port(text: str) -> str:
    """Return the address of ``127.0.0.1:80`` or ``[::1]:80``; other text unchanged."""
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+", text.strip())
    return (match[1] or match[2]) if match else text.strip()
