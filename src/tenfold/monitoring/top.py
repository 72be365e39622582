"""What a running service does now, from two looks at ``/metrics`` of its instances. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenfold.errors import DependencyError

__all__ = ["Look", "Summary", "parse_metrics", "summarize"]

_SECONDS = "http_server_request_duration_seconds"
_POOL = "db_client_connection"
_HITS = ("memory", "redis", "coalesced")
_ROUTES = 8

Labels = tuple[tuple[str, str], ...]
Samples = Mapping[tuple[str, Labels], float]


@dataclass(frozen=True, slots=True)
class Look:
    """The samples of all instances at one moment, in seconds of any clock."""

    at: float
    instances: Mapping[str, Samples]


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers of the time between two looks; durations in seconds, None where nothing says anything.

    Attributes:
        instances: those that answered both times.
        rate: requests/s.
        failed: the share of requests answered with 5xx.
        p50, p95: by interpolation within a bucket.
        routes: by template, the most frequent first: requests/s and p95.
        process: cores a worker, the latest timer of the event loop, threads at work and most.
        limiter: requests in flight, the limit, refused/s.
        pools: by name: connections in use, at most, requests that wait for one.
        replicas: by server: seconds behind, and whether it gets reads.
        queues: by name: tasks waiting, seconds of the oldest, running, dead, worker processes.
        hit_ratio: of the query cache.
    """

    instances: int
    rate: float
    failed: float | None
    p50: float | None
    p95: float | None
    routes: dict[str, dict[str, float | None]] = field(default_factory=dict)
    process: dict[str, float] = field(default_factory=dict)
    limiter: dict[str, float] = field(default_factory=dict)
    pools: dict[str, dict[str, float]] = field(default_factory=dict)
    replicas: dict[str, dict[str, float]] = field(default_factory=dict)
    queues: dict[str, dict[str, float]] = field(default_factory=dict)
    hit_ratio: float | None = None


def parse_metrics(text: str) -> dict[tuple[str, Labels], float]:
    """Parse an answer of ``/metrics``.

    Raises:
        ValueError: it is no text of Prometheus' format.
        DependencyError: prometheus-client is not installed.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        raise DependencyError(
            "prometheus-client is not installed: pip install 'tenfold[monitoring]'"
        ) from None
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not math.isnan(sample.value)
    }


class _Pair:
    """Two looks, and what changed between them."""

    def __init__(self, before: Look, after: Look) -> None:
        self.seconds = max(after.at - before.at, 1e-9)
        self.names = before.instances.keys() & after.instances.keys()
        self._before, self._after = before, after

    def now(self, metric: str) -> Iterable[tuple[dict[str, str], float]]:
        """The labels and values of a gauge, of every instance."""
        for name in self.names:
            for (found, labels), value in self._after.instances[name].items():
                if found == metric:
                    yield dict(labels), value

    def growth(self, metric: str) -> Iterable[tuple[dict[str, str], float]]:
        """The labels of a counter and how much it grew; a worker that began anew counts from zero."""
        for name in self.names:
            former = self._before.instances[name]
            for (found, labels), value in self._after.instances[name].items():
                if found == metric:
                    base = former.get((found, labels), 0.0)
                    yield dict(labels), value - base if value >= base else value

    def sum_now(self, metric: str, **wanted: str) -> float:
        return sum(value for labels, value in self.now(metric) if wanted.items() <= labels.items())

    def sum_growth(self, metric: str, **wanted: str) -> float:
        return sum(value for labels, value in self.growth(metric) if wanted.items() <= labels.items())


def summarize(before: Look, after: Look) -> Summary:
    """Sum up the time between two looks; an instance that is in one of them only is left out."""
    pair = _Pair(before, after)
    count = pair.sum_growth(f"{_SECONDS}_count")
    failed = sum(
        value
        for labels, value in pair.growth(f"{_SECONDS}_count")
        if labels.get("http_response_status_code", "").startswith("5")
    )
    lookups = list(pair.growth("tenfold_cache_lookups_total"))
    looked = sum(value for _, value in lookups)
    hits = sum(value for labels, value in lookups if labels.get("outcome") in _HITS)
    return Summary(
        instances=len(pair.names),
        rate=count / pair.seconds,
        failed=failed / count if count else None,
        p50=_quantile(pair, 0.5),
        p95=_quantile(pair, 0.95),
        routes=_routes(pair),
        process=_process(pair),
        limiter=_limiter(pair),
        pools=_grouped(
            pair,
            f"{_POOL}_pool_name",
            sum,
            used=(f"{_POOL}_count", {f"{_POOL}_state": "used"}),
            most=(f"{_POOL}_max", {}),
            waiting=(f"{_POOL}_pending_requests", {}),
        ),
        replicas=_grouped(
            pair,
            "server",
            max,
            lag_s=("tenfold_replica_lag_seconds", {}),
            serving=("tenfold_replica_serving", {}),
        ),
        queues=_grouped(
            pair,
            "queue",
            max,
            waiting=("tenfold_tasks_waiting", {}),
            oldest_s=("tenfold_tasks_oldest_seconds", {}),
            running=("tenfold_tasks_running", {}),
            dead=("tenfold_tasks_dead", {}),
            processes=("tenfold_task_processes", {}),
        ),
        hit_ratio=hits / looked if looked else None,
    )


def _quantile(pair: _Pair, share: float, **wanted: str) -> float | None:
    """A quantile of durations, as Prometheus' histogram_quantile interpolates it."""
    counts: dict[float, float] = {}
    for labels, value in pair.growth(f"{_SECONDS}_bucket"):
        if wanted.items() <= labels.items():
            edge = float(labels.get("le", "inf"))
            counts[edge] = counts.get(edge, 0.0) + value
    edges = sorted(counts)
    total = counts[edges[-1]] if edges else 0.0
    if not total:
        return None
    rank, low, below = share * total, 0.0, 0.0
    for edge in edges:
        if counts[edge] >= rank:
            if math.isinf(edge):
                return low
            inside = counts[edge] - below
            return low + (edge - low) * ((rank - below) / inside if inside else 1.0)
        low, below = edge, counts[edge]
    return low


def _routes(pair: _Pair) -> dict[str, dict[str, float | None]]:
    counts: dict[str, float] = {}
    for labels, value in pair.growth(f"{_SECONDS}_count"):
        route = labels.get("http_route", "")
        counts[route] = counts.get(route, 0.0) + value
    busiest = sorted((route for route in counts if counts[route]), key=lambda route: -counts[route])[:_ROUTES]
    return {
        route: {"rate": counts[route] / pair.seconds, "p95": _quantile(pair, 0.95, http_route=route)}
        for route in busiest
    }


def _process(pair: _Pair) -> dict[str, float]:
    workers = pair.sum_now("tenfold_workers")
    if not workers:
        return {}
    return {
        "workers": workers,
        "cpu": pair.sum_growth("tenfold_cpu_seconds_total") / pair.seconds / workers,
        "loop_lag_s": max((value for _, value in pair.now("tenfold_event_loop_lag_seconds")), default=0.0),
        "threads_busy": pair.sum_now("tenfold_threads_busy"),
        "threads_max": pair.sum_now("tenfold_threads_max"),
    }


def _limiter(pair: _Pair) -> dict[str, float]:
    limit = pair.sum_now("tenfold_concurrency_limit")
    if not limit:
        return {}
    refused = sum(
        value for labels, value in pair.growth("tenfold_shed_total") if labels.get("mode") != "shadow"
    )
    return {
        "in_flight": pair.sum_now("tenfold_concurrency_in_flight"),
        "limit": limit,
        "refused": refused / pair.seconds,
    }


def _grouped(
    pair: _Pair,
    label: str,
    join: Callable[[Sequence[float]], float],
    **metrics: tuple[str, Mapping[str, str]],
) -> dict[str, dict[str, Any]]:
    """Gauges by one of their labels, those of several instances joined: added, or the largest."""
    values: dict[str, dict[str, list[float]]] = {}
    for key, (metric, wanted) in metrics.items():
        for labels, value in pair.now(metric):
            if wanted.items() <= labels.items():
                values.setdefault(labels.get(label, ""), {}).setdefault(key, []).append(value)
    return {
        name: {key: join(found[key]) if key in found else 0.0 for key in metrics}
        for name, found in sorted(values.items())
    }
