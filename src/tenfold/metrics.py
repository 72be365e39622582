"""The names and the registry of every metric that tenfold exports, and ``/metrics`` for any ASGI app.

Thin over prometheus-client, which is imported when the first metric is used. With PROMETHEUS_MULTIPROC_DIR
set before that, each worker writes its values to files in that folder and any worker answers for all of them.
The folder belongs to one machine and one run: empty it before a start. Counters of ended workers are kept,
because they may not go backwards, so it grows by two files of 64 KiB with every restart of a worker.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send, route_template, send_answer
from tenfold.errors import DependencyError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.core import Metric as Family

    Instrument = Counter | Gauge | Histogram

__all__ = [
    "METRICS",
    "REQUESTS",
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
    """One exported metric. Every label has few values: a route's template, never a path."""

    name: str  # tenfold_…_total for a counter; _seconds, _bytes or _ratio for what has a unit; db_client_… as
    # OpenTelemetry has them
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()
    workers: Literal["livesum", "livemax", "livemin"] = "livesum"  # a gauge of several processes


# One line a metric; a boundary at 0.2 s because that is the objective unless somebody sets another.
REQUESTS = Metric(
    "tenfold_requests_total",
    "counter",
    ("method", "route", "status"),
    "Requests answered; status 499 is a client that went away first.",
)
REQUEST_SECONDS = Metric(
    "tenfold_request_seconds",
    "histogram",
    ("method", "route", "status"),
    "Time from the arrival of a request to the last byte of its answer.",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.5, 5.0, 10.0),
)
CONCURRENCY_LIMIT = Metric(
    "tenfold_concurrency_limit", "gauge", (), "Requests that the limiter lets run at once."
)
CONCURRENCY_IN_FLIGHT = Metric(
    "tenfold_concurrency_in_flight", "gauge", (), "Requests that the limiter has let in and that still run."
)
SHED = Metric(
    "tenfold_shed_total",
    "counter",
    ("reason", "priority", "mode"),
    "Requests refused by the limiter; mode shadow is what it would have refused.",
)
RATE_LIMITED = Metric(
    "tenfold_rate_limited_total",
    "counter",
    ("policy", "mode"),
    "Requests beyond their rate; mode open or closed is what was done while the counter's server was gone.",
)
# A pool's, under OpenTelemetry's names for them; the pool is "host:port/database" unless it has a name.
_POOL = "db_client_connection_pool_name"
_POOL_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
POOL_CONNECTIONS = Metric(
    "db_client_connection_count",
    "gauge",
    (_POOL, "db_client_connection_state"),
    "Connections that are open now, used or idle.",
)
POOL_SIZE = Metric("db_client_connection_idle_max", "gauge", (_POOL,), "Connections that the pool keeps.")
POOL_MAX = Metric("db_client_connection_max", "gauge", (_POOL,), "Connections that the pool opens at most.")
POOL_OVERFLOW = Metric("tenfold_pool_overflow", "gauge", (_POOL,), "Open connections beyond those kept.")
POOL_WAITING = Metric(
    "db_client_connection_pending_requests", "gauge", (_POOL,), "Checkouts that wait for a connection now."
)
POOL_TIMEOUTS = Metric(
    "db_client_connection_timeouts_total", "counter", (_POOL,), "Checkouts that waited in vain."
)
POOL_REFUSED = Metric(
    "tenfold_pool_refused_total", "counter", (_POOL,), "Checkouts refused because too many wait already."
)
POOL_WAIT_SECONDS = Metric(
    "db_client_connection_wait_time_seconds",
    "histogram",
    (_POOL, "route"),
    "Time until a connection was handed out, opening it included.",
    _POOL_BUCKETS,
)
POOL_USE_SECONDS = Metric(
    "db_client_connection_use_time_seconds",
    "histogram",
    (_POOL, "route"),
    "Time from handing a connection out to taking it back.",
    _POOL_BUCKETS,
)
# The router's, by server: "host:port/database".
READS = Metric(
    "tenfold_reads_total",
    "counter",
    ("server", "outcome"),
    "Reads by how their server was found: no_token, known_fresh, asked_replica, waited_for_replica, primary.",
)
REPLICA_LAG_SECONDS = Metric(
    "tenfold_replica_lag_seconds", "gauge", ("server",), "Age of what a replica lacks.", workers="livemax"
)
REPLICA_LAG_BYTES = Metric(
    "tenfold_replica_lag_bytes", "gauge", ("server",), "Log that it has to replay.", workers="livemax"
)
REPLICA_SERVING = Metric(
    "tenfold_replica_serving", "gauge", ("server",), "1 for one that gets reads, else 0.", workers="livemin"
)
METRICS: tuple[Metric, ...] = tuple(value for value in globals().copy().values() if isinstance(value, Metric))

# ------------------------------------------------------------------ registry

_instruments: WeakKeyDictionary[CollectorRegistry, dict[str, Instrument]] = WeakKeyDictionary()


def instrument(metric: Metric, *, registry: CollectorRegistry | None = None) -> Instrument:
    """The prometheus-client object of a metric, made once for each registry (None: the default one).

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
            # Only a "live" mode ends with its worker; a sum over the dead would never go down again.
            options["multiprocess_mode"] = metric.workers
            known[metric.name] = client.Gauge(metric.name, metric.help, **options)
        else:
            options["buckets"] = metric.buckets or client.Histogram.DEFAULT_BUCKETS
            known[metric.name] = client.Histogram(metric.name, metric.help, **options)
    return known[metric.name]


def exposition(*, registry: CollectorRegistry | None = None) -> bytes:
    """Everything measured so far, in Prometheus' text format 0.0.4.

    In multi-process mode that is what all workers measured, whatever their registries, and ``registry`` has
    no part in it. Reads a few files for each worker that ever ran: milliseconds that belong in a thread and
    not on the event loop. A worker whose process id was given to another process counts as living.
    """
    client = _client()
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        registry = client.CollectorRegistry()
        registry.register(_Workers(Path(folder)))
    text: bytes = client.generate_latest(client.REGISTRY if registry is None else registry)
    return text


class _Workers:
    """The values of all workers, merged, without the gauges of those that ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def collect(self) -> Iterable[Family]:
        from prometheus_client.multiprocess import MultiProcessCollector

        files = [file for file in self.folder.glob("*.db") if self._holds_values(file)]
        merge: Callable[[list[str]], Iterable[Family]] = MultiProcessCollector.merge
        return merge([str(file) for file in files])

    @staticmethod
    def _holds_values(file: Path) -> bool:
        """Ends the file of a dead worker's gauge; skips one that a worker has only just opened."""
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
_CLIENT_WENT_AWAY = "499"  # nginx's own number for it


class MetricsMiddleware:
    """Counts and times the requests of an ASGI app by method, route and status.

    The route is the template that Starlette, FastAPI and others leave in ``scope["route"]``; requests that no
    route took are ``other``, as is every route beyond ``max_routes``. WebSockets are passed on uncounted.
    """

    def __init__(
        self, app: ASGIApp, *, registry: CollectorRegistry | None = None, max_routes: int = 200
    ) -> None:
        self.app = app
        self.max_routes = max_routes
        self.routes: set[str] = set()
        self.requests: Any = instrument(REQUESTS, registry=registry)
        self.seconds: Any = instrument(REQUEST_SECONDS, registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        mounted_at = scope.get("root_path", "")
        status, ended = "500", 0.0  # an app that raises is answered with 500 by its server

        async def watch(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                ended = time.perf_counter()  # what runs after the answer is nobody's waiting time

        try:
            await self.app(scope, receive, watch)
        except asyncio.CancelledError:
            status = status if ended else _CLIENT_WENT_AWAY
            raise
        finally:
            self._record(scope, mounted_at, status, (ended or time.perf_counter()) - started)

    def _record(self, scope: Scope, mounted_at: str, status: str, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else _OTHER
        labels = (method, self._bounded(route_template(scope, mounted_at) or _OTHER), status)
        self.requests.labels(*labels).inc()
        self.seconds.labels(*labels).observe(seconds)

    def _bounded(self, route: str) -> str:
        if route not in self.routes and len(self.routes) >= self.max_routes:
            return _OTHER
        self.routes.add(route)
        return route


# ------------------------------------------------------------------ /metrics


class MetricsEndpoint:
    """``/metrics``, for this machine only: everyone else gets 404.

    Alone it is an ASGI app to mount; around an ``app`` it answers ``path`` and passes everything else on. It
    believes the peer of the connection, never a header: but when a proxy's X-Forwarded-For, X-Real-IP or
    Forwarded names an address outside ``networks``, or anything that is no address, the answer is 404 too,
    because behind a proxy on this machine every peer is this machine. A proxy that adds none of these headers
    hides who asks: close the path there as well. A peer without an address (a Unix socket) gets 404.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        path: str = "/metrics",
        registry: CollectorRegistry | None = None,
        networks: Sequence[str] = ("127.0.0.0/8", "::1/128"),
    ) -> None:
        self.app = app
        self.path = path
        self.registry = registry
        self.networks = [ipaddress.ip_network(network) for network in networks]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        mine = scope["type"] == "http" and (self.app is None or scope["path"] == self.path)
        if not mine and self.app is not None:
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not answered here")  # how ASGI declines a lifespan
        if not all(map(self._allowed, _callers(scope))):
            return await send_answer(send, 404, b"Not Found\n")
        if scope["method"] not in {"GET", "HEAD"}:
            return await send_answer(send, 405, b"Method Not Allowed\n", headers=[(b"allow", b"GET, HEAD")])
        body = await asyncio.to_thread(exposition, registry=self.registry)
        await send_answer(send, 200, body, content_type=CONTENT_TYPE, head_only=scope["method"] == "HEAD")

    def _allowed(self, caller: str) -> bool:
        try:
            address = ipaddress.ip_address(caller)
        except ValueError:
            return False
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain.version == network.version and plain in network for network in self.networks)


def _callers(scope: Scope) -> list[str]:
    """The peer, and every address that the request claims to have come through."""
    callers = [str((scope.get("client") or ("",))[0])]
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        if name.lower() in {b"x-forwarded-for", b"x-real-ip"}:
            callers += [_without_port(part) for part in text.split(",")]
        elif name.lower() == b"forwarded":  # RFC 7239 section 4; no for= in an element hides its caller
            callers += [_forwarded_for(element) for element in text.split(",")]
    return callers


def _forwarded_for(element: str) -> str:
    match = re.search(r'(?:^|;)\s*for\s*=\s*("?)([^";]*)\1\s*(?:;|$)', element, re.IGNORECASE)
    return _without_port(match[2]) if match else ""


def _without_port(text: str) -> str:
    """``127.0.0.1:80`` and ``[::1]:80`` as their addresses."""
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::\d+)?|(\d+\.\d+\.\d+\.\d+):\d+", text.strip())
    return (match[1] or match[2]) if match else text.strip()
