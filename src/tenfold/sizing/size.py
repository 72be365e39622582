"""The arithmetic: each number with its formula and what it rests on. Pure.

Instances are as busy as the scaler aims for, database servers up to seven tenths, workers up to eight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tenfold.sizing.settings import SizingSettings

__all__ = ["Limit", "Measured", "Need", "Number", "limits_on_the_way", "size"]

Basis = Literal["measured", "set", "assumed"]
_DATABASE_BUSY, _WORKERS_BUSY = 0.7, 0.8
_MONTH_H = 730.0
_MOST_USERS = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What sizing starts from.

    Attributes:
        instance_rps: for which the scaler aims at one instance.
        database_cpu_ms: of a request; 0 where it was not measured.
        connections: that one instance may open.
        reserve, max_connections: of the database server.
        least, most: instances of the scaler.
        worker_processes: tasks at once of one worker.
        instance_price: an hour; 0: costs are left out.
        capacity: what ``instance_rps`` rests on.
    """

    instance_rps: float
    database_cpu_ms: float = 0.0
    connections: int
    reserve: int
    max_connections: int
    least: int
    most: int
    worker_processes: int = 2
    instance_price: float = 0.0
    capacity: Basis = "measured"


@dataclass(frozen=True, slots=True)
class Number:
    """One number: its value, how it is shown, where it comes from."""

    name: str
    value: float
    shown: str
    formula: str
    basis: Basis


@dataclass(frozen=True, slots=True)
class Limit:
    """What breaks, with how many users, and what to do."""

    users: int
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Need:
    """What so many users need at their peak."""

    rate: float
    app_rate: float
    instances: int
    connections: int
    database_cores: float
    primary_cores: float
    database_servers: int
    redis_mb: float
    workers: int


def _need(users: float, sizing: SizingSettings, measured: Measured) -> Need:
    rate = users * sizing.active_share / sizing.think_s * sizing.peak_factor
    app_rate = rate * (1 - sizing.edge_share)
    instances = max(math.ceil(app_rate / measured.instance_rps), measured.least)
    surge = math.ceil(instances / 4)
    cores = app_rate * _cpu_ms(sizing, measured) / 1000
    workers = math.ceil(
        app_rate * sizing.task_share * sizing.task_s / (measured.worker_processes * _WORKERS_BUSY)
    )
    connections = (
        (instances + surge) * measured.connections + workers * measured.worker_processes + measured.reserve
    )
    reads = cores * (1 - sizing.write_share)
    usable = sizing.database_cores * _DATABASE_BUSY
    left = max(usable - cores * sizing.write_share, 0.0)
    replicas = math.ceil(max(reads - left, 0.0) / usable)
    redis_mb = users * sizing.session_share * sizing.session_kb / 1024 + sizing.cache_mb
    primary = cores * sizing.write_share
    return Need(rate, app_rate, instances, connections, cores, primary, 1 + replicas, redis_mb, workers)


def _cpu_ms(sizing: SizingSettings, measured: Measured) -> float:
    return sizing.database_cpu_ms or measured.database_cpu_ms or 2.0


def size(users: int, sizing: SizingSettings, measured: Measured) -> list[Number]:
    """What ``users`` need, each number with its formula."""
    need = _need(users, sizing, measured)
    cpu_ms, set_keys = _cpu_ms(sizing, measured), sizing.model_fields_set

    def basis(*keys: str) -> Basis:
        return "set" if all(key in set_keys for key in keys) else "assumed"

    cpu_basis: Basis = (
        "set" if sizing.database_cpu_ms else "measured" if measured.database_cpu_ms else "assumed"
    )
    numbers = [
        Number(
            "request rate",
            need.rate,
            f"{need.rate:,.0f}/s",
            f"{users:,} × {sizing.active_share:.0%} active / {sizing.think_s:g} s × {sizing.peak_factor:g}",
            basis("active_share", "think_s", "peak_factor"),
        ),
        Number(
            "to the app",
            need.app_rate,
            f"{need.app_rate:,.0f}/s",
            f"the edge answers {sizing.edge_share:.0%}",
            basis("edge_share"),
        ),
        Number(
            "instances",
            need.instances,
            f"{need.instances:,}",
            f"{need.app_rate:,.0f}/s / {measured.instance_rps:,.4g}/s each, {measured.least} at least",
            measured.capacity,
        ),
        Number(
            "connections",
            need.connections,
            f"{need.connections:,}",
            f"(instances + a quarter) × {measured.connections} + workers + {measured.reserve}",
            "set",
        ),
        Number(
            "database CPU",
            need.database_cores,
            f"{need.database_cores:,.1f} cores",
            f"{cpu_ms:.2g} ms a request, {sizing.write_share:.0%} of it writes",
            cpu_basis,
        ),
        Number(
            "database servers",
            need.database_servers,
            f"{need.database_servers:,}",
            f"{sizing.database_cores} cores each, {_DATABASE_BUSY:.0%} busy at most",
            basis("database_cores", "write_share"),
        ),
        Number(
            "Redis",
            need.redis_mb,
            f"{need.redis_mb:,.0f} MB",
            f"{sizing.session_share:.0%} of the users × {sizing.session_kb:g} KB + {sizing.cache_mb:g} MB",
            basis("session_share", "session_kb", "cache_mb"),
        ),
        Number(
            "workers",
            need.workers,
            f"{need.workers:,}",
            f"{sizing.task_share:g} a request × {sizing.task_s:g} s / {measured.worker_processes} at once",
            basis("task_share", "task_s"),
        ),
    ]
    numbers += _regions(sizing)
    if measured.instance_price or sizing.database_price:
        numbers.append(_cost(need, sizing, measured))
    return numbers


def _regions(sizing: SizingSettings) -> list[Number]:
    found = []
    for name, region in sizing.regions.items():
        mean = sizing.edge_share * region.edge_rtt_ms + (1 - sizing.edge_share) * region.rtt_ms
        found.append(
            Number(
                f"latency, {name[:16]}",
                mean,
                f"+{mean:,.0f} ms",
                f"{region.rtt_ms:g} ms without the edge, {region.edge_rtt_ms:g} ms from it",
                "set",
            )
        )
    return found


def _cost(need: Need, sizing: SizingSettings, measured: Measured) -> Number:
    busy = sizing.busy_hours / 24
    instances = max(need.instances * busy, measured.least) * measured.instance_price
    servers = need.database_servers * sizing.database_price
    redis = need.redis_mb / 1024 * sizing.redis_price_gb
    gigabytes = (need.rate - need.app_rate) * busy * sizing.edge_kb / 1024**2 * 3600
    month = (instances + servers + redis + gigabytes * sizing.edge_price_gb) * _MONTH_H
    formula = f"instances as for {sizing.busy_hours:g} hours of the peak a day"
    return Number("cost a month", month, f"{month:,.0f}", formula, "set")


def limits_on_the_way(
    sizing: SizingSettings, measured: Measured, *, to: int = 1_000_000, start: int = 100
) -> list[Limit]:
    """What is used up between ``start`` and ``to`` users, in the order in which it happens."""
    usable = sizing.database_cores * _DATABASE_BUSY
    conditions: Sequence[tuple[str, str, Callable[[Need], bool]]] = (
        (
            f"the scaler's minimum of {measured.least} is full",
            "autoscaling",
            lambda need: need.instances > measured.least,
        ),
        (
            f"the database's {measured.max_connections} connections are used up",
            "PgBouncer, or smaller pools: tenfold doctor",
            lambda need: need.connections > measured.max_connections,
        ),
        (
            f"one database server of {sizing.database_cores} cores is full",
            "the query cache and read replicas",
            lambda need: need.database_cores > usable,
        ),
        (
            "the primary is full of writes",
            "tasks in the background, then shards",
            lambda need: need.primary_cores > usable,
        ),
        (
            f"the scaler's maximum of {measured.most} instances",
            "raise max_replicas",
            lambda need: need.instances > measured.most,
        ),
    )
    found = []
    for what, remedy, is_over in conditions:
        users = _first(partial(_is_over, is_over, sizing, measured), start)
        if users is not None and users <= to:
            found.append(Limit(users, what, remedy))
    return sorted(found, key=lambda limit: limit.users)


def _is_over(
    condition: Callable[[Need], bool], sizing: SizingSettings, measured: Measured, users: int
) -> bool:
    return condition(_need(users, sizing, measured))


def _first(is_over: Callable[[int], bool], start: int) -> int | None:
    """The smallest number of users from ``start`` on for which it holds; it goes on to hold."""
    low, high = start, start
    while not is_over(high):
        if high > _MOST_USERS:
            return None
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_over(middle) else (middle + 1, high)
    return high
