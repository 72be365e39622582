"""One rule for each kind of bottleneck: its condition, and the sentences of the report.

Shares are of the slow requests' time: of all requests slower than the median of their own route, how much of
their time went there. A request that waits for a connection waits for the statements of other requests: that
time is attributed to the statements, in proportion to the time for which each of them held connections.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tenfold.measure.diagnosis.bottleneck import Bottleneck
from tenfold.measure.diagnosis.explain import MissingIndex, Plan
from tenfold.measure.diagnosis.resources import Resources
from tenfold.measure.probe.evidence import ROUND_TRIPS, Evidence, PoolStats, StatementStats

SMALL = 0.02  # a smaller share of the slow requests' time is not reported
FREQUENT = 0.15  # a statement with this share of it is reported although each execution is quick
POOL_WAIT = 0.1  # of the objective's slow_ms: a longer p95 wait for a connection is reported
IN_USE = 0.3  # of the checked-out time: below, it is not the database that fills the pool
ONE_CORE = 0.9  # a Python process runs bytecode on one core at a time
MACHINE_FULL = 0.9
LOOP_LAG_MS = 50.0
STATEMENT_SHOWN = 120
CAUSE = 0.1  # of the database time: a full pool or a busy core may follow from it
MOSTLY = 0.5

_COLUMNS = re.compile(r"^SELECT .{40,}? FROM ")


@dataclass(frozen=True, slots=True)
class Observations:
    """The input of the rules."""

    evidence: Evidence
    resources: Resources | None
    plans: Mapping[str, Plan]
    slow_ms: float
    limits: Mapping[str, float]

    def share(self, seconds: float) -> float | None:
        """Return ``seconds`` as a share of the slow requests' time."""
        return min(seconds / self.evidence.slow_s, 1.0) if self.evidence.slow_s else None

    def explained_share(self, *uses: StatementStats) -> float | None:
        """Return the share of the slow requests' time in these statements and in waiting for them."""
        waited = sum(route.slow_wait_s for route in self.evidence.routes)
        held = sum(use.total_s for use in uses) / self.held_s if self.held_s else 0.0
        return self.share(sum(use.slow_s for use in uses) + waited * min(held, 1.0))

    @property
    def held_s(self) -> float:
        """Connection-seconds checked out."""
        return sum(pool.held_s for pool in self.evidence.pools)

    @property
    def used_share(self) -> float:
        """Share of the checked-out time in which statements ran."""
        ran = sum(use.total_s for use in self.evidence.statements)
        return min(ran / self.held_s, 1.0) if self.held_s else 0.0

    @property
    def app_cores(self) -> float:
        """Mean cores used per worker of the app."""
        app = self.resources.groups.get("app") if self.resources is not None else None
        return app.mean.cpu_cores / max(self.evidence.workers, 1) if app is not None else 0.0


def n_plus_ones(observed: Observations) -> Iterator[Bottleneck]:
    """N+1: a statement from one line, many times in one request."""
    for use in observed.evidence.statements:
        if not use.repeating_requests or use.fingerprint in ROUND_TRIPS:
            continue
        yield Bottleneck(
            kind="Database",
            title=f"N+1 in {use.route}",
            severity="critical",
            where=use.site or _endpoint(observed, use.route),
            share=observed.explained_share(use),
            evidence=(
                f"one statement runs {use.repetitions_mean:.0f} times per request, "
                f"at most {use.executions_max}, in {use.repeating_requests} of {use.requests} requests",
                _executions(use),
                abbreviate(use.fingerprint),
            ),
            remedy="load the related rows with the first statement (selectinload or joinedload), "
            "or query all keys at once (IN)",
        )


def missing_indexes(observed: Observations) -> Iterator[Bottleneck]:
    """Look-ups and sorts by a column without an index; one bottleneck per index, for all its statements."""
    by_index: dict[str, tuple[MissingIndex, list[StatementStats]]] = {}
    for use in observed.evidence.statements:
        for missing in observed.plans[use.fingerprint].missing if use.fingerprint in observed.plans else ():
            by_index.setdefault(missing.create, (missing, []))[1].append(use)
    for missing, uses in by_index.values():
        proof = missing.proof
        if proof is not None and not proof.helps:
            continue
        needed = "the first ones in order" if missing.ordered else f"{max(missing.rows, 1):,.0f}"
        evidence = [f"reads {missing.table_rows:,} rows to find {needed}", _executions(*uses)]
        if proof is not None:
            evidence.append(
                f"one look-up takes {proof.after_ms:.2f} ms with the index, {proof.before_ms:.1f} ms without"
            )
        yield Bottleneck(
            kind="Database",
            title=f"missing index on {missing.table} ({missing.column})",
            severity="critical",
            proof="proven" if proof is not None else "suspected",
            where=uses[0].site or None,
            share=observed.explained_share(*uses),
            evidence=tuple(evidence),
            remedy=missing.create,
        )


def slow_statements(observed: Observations) -> Iterator[Bottleneck]:
    """Statements that are slow on average, and quick ones that take much of the time in total."""
    for use in observed.evidence.statements:
        plan = observed.plans.get(use.fingerprint)
        if use.fingerprint in ROUND_TRIPS or use.repeating_requests or (plan is not None and plan.missing):
            continue  # reported by another rule
        slow = use.mean_ms > observed.limits["db_query_time_avg"]
        share = observed.explained_share(use)
        if not use.route or not (slow or (share is not None and share >= FREQUENT)):
            continue
        yield Bottleneck(
            kind="Database",
            title=f"{'slow' if slow else 'frequent'} statement in {use.route}",
            severity="critical" if slow else "high",
            where=use.site or _endpoint(observed, use.route),
            share=share,
            evidence=(
                _executions(use),
                abbreviate(use.fingerprint),
                *(plan.lines[:6] if plan is not None else ()),
            ),
            remedy="read its plan, fetch fewer rows, or cache the result"
            if slow
            else "cache the result, or run it less often",
        )


def connection_churn(observed: Observations) -> Iterator[Bottleneck]:
    """Connections opened within requests: no pool, or one that overflows all the time."""
    uses = [use for use in observed.evidence.statements if use.fingerprint == "CONNECT" and use.route]
    share = observed.share(sum(use.slow_s for use in uses))
    opened = sum(use.executions for use in uses)
    if share is not None and share >= SMALL and opened > 0.05 * observed.evidence.requests:
        yield Bottleneck(
            kind="Connection Pool",
            title="many requests open a new connection",
            severity="high",
            share=share,
            evidence=(f"{opened:,} opened in {observed.evidence.requests:,} requests", _executions(*uses)),
            remedy="raise pool_size to the number of connections used at once, and lower max_overflow",
        )


def full_pools(observed: Observations) -> Iterator[Bottleneck]:
    """Pools without a free connection most of the time, or with long waits."""
    for pool in observed.evidence.pools:
        limit = observed.limits["db_connection_pool_usage"] / 100
        if pool.wait_p95_ms <= POOL_WAIT * observed.slow_ms and not (
            pool.timeouts or pool.full_share > limit
        ):
            continue
        yield Bottleneck(
            kind="Connection Pool",
            title=f"full {_percent(pool.full_share)} of the time",
            severity="high",
            where=pool.site or None,
            share=observed.share(sum(route.slow_wait_s for route in observed.evidence.routes)),
            evidence=(
                *_pool_lines(pool),
                f"statements run in {_percent(observed.used_share)} of the time they are checked out",
            ),
            remedy="hold connections for less time; enlarge the pool if it is still full after that"
            if observed.used_share >= IN_USE
            else "check a connection out later and return it before other work (remote calls, rendering)",
        )


def busy_cpus(observed: Observations) -> Iterator[Bottleneck]:
    """CPU of the app's processes, of the database and of the machine."""
    resources = observed.resources
    if resources is None or resources.machine is None:
        return
    machine, groups = resources.machine.mean, resources.groups
    if observed.app_cores >= ONE_CORE:
        costliest = observed.evidence.routes[0].route if observed.evidence.routes else "the costliest route"
        yield Bottleneck(
            kind="CPU",
            title="the app's processes use a full core each",
            severity="high",
            evidence=(
                f"{observed.app_cores:.2f} cores per worker, {observed.evidence.workers} workers; "
                "a Python process runs on one core at a time",
            ),
            remedy=f"profile {costliest} (profile_function), or run more instances if cores are free",
        )
    if machine.cpu >= min(MACHINE_FULL, observed.limits["cpu_usage"] / 100 + 0.1):
        yield _busy_machine(observed, machine.cpu, machine.cpu_pressure)
    database = groups.get("database")
    if database is not None and database.mean.cpu_cores >= 0.7 * resources.cores:
        yield _busy_database(observed, f"{database.mean.cpu_cores:.2f} of {resources.cores} cores used")


def _busy_database(observed: Observations, cores: str) -> Bottleneck:
    """A database without a free core; the remedy puts savings before replicas."""
    uses = [use for use in observed.evidence.statements if use.fingerprint not in ROUND_TRIPS]
    ran_s = sum(use.total_s for use in uses) or 1.0
    saved = sum(use.total_s for use in uses if _is_wasteful(observed, use)) / ran_s
    reads = sum(use.total_s for use in uses if _is_read(use) and not _is_wasteful(observed, use)) / ran_s
    if saved >= CAUSE:
        remedy = (
            "fix N+1 and missing indexes first, which costs less than a replica; "
            f"replicas could take over {_percent(reads)} of the time"
        )
    elif reads >= MOSTLY:
        remedy = f"cache results, or read from replicas, which could take over {_percent(reads)} of the time"
    else:
        remedy = "write less, or in larger batches: replicas do not take over writes"
    return Bottleneck(
        kind="CPU",
        title="the database has no free core",
        severity="high",
        evidence=(
            cores,
            f"of its statements' time {_percent(saved)} is N+1 or lacks an index, "
            f"{_percent(reads)} is other reads",
        ),
        remedy=remedy,
    )


def _is_wasteful(observed: Observations, use: StatementStats) -> bool:
    plan = observed.plans.get(use.fingerprint)
    missing = plan.missing if plan is not None else ()
    return bool(use.repeating_requests) or any(one.proof is None or one.proof.helps for one in missing)


def _is_read(use: StatementStats) -> bool:
    """Return whether a replica could run it: no row locks, no writes in a WITH."""
    words = use.fingerprint.upper()
    writes = (" FOR ", "INSERT INTO", "UPDATE ", "DELETE FROM")
    return words.startswith(("SELECT", "WITH")) and not any(word in words for word in writes)


def _busy_machine(observed: Observations, cpu: float, pressure: float) -> Bottleneck:
    """A machine without a free core, and the processes that use it."""
    assert observed.resources is not None
    groups, cores = observed.resources.groups, observed.resources.cores
    others = cpu * cores - sum(use.mean.cpu_cores for use in groups.values())
    used = "".join(f"{name} {use.mean.cpu_cores:.2f}, " for name, use in groups.items())
    by_others = others > cores / 2
    return Bottleneck(
        kind="Machine" if by_others else "CPU",
        title="other programs use its cores" if by_others else "the machine has no free core",
        severity="high",
        evidence=(
            f"{_percent(cpu)} of {cores} cores used: {used}others {max(others, 0):.2f}",
            f"tasks waited for a core {_percent(pressure)} of the time",
        ),
        remedy="stop the other programs and measure again"
        if by_others
        else "do less work per request, or move the busiest of them to its own machine",
    )


def machine_limits(observed: Observations) -> Iterator[Bottleneck]:
    """Memory and disk of the machine near their limits."""
    if observed.resources is None or observed.resources.machine is None:
        return
    mean, most = observed.resources.machine.mean, observed.resources.machine.max
    if most.memory * 100 > observed.limits["memory_usage"]:
        yield Bottleneck(
            kind="Memory",
            title="memory is nearly full",
            severity="high",
            evidence=(
                f"{_percent(most.memory)} in use",
                f"tasks waited for memory {_percent(mean.memory_pressure)} of the time",
            ),
            remedy="find the processes that grow, bound caches and result sets, or add memory",
        )
    if mean.iowait * 100 > observed.limits["disk_io_wait"]:
        yield Bottleneck(
            kind="Disk I/O",
            title="CPUs wait for the disk",
            severity="medium",
            evidence=(
                f"iowait {_percent(mean.iowait)} of CPU time",
                f"tasks waited for I/O {_percent(mean.io_pressure)} of the time",
            ),
            remedy="give the database enough memory for its working set, or faster disks",
        )


def late_event_loops(observed: Observations) -> Iterator[Bottleneck]:
    """A late event loop, unless the busy CPU alone explains it."""
    loop = observed.evidence.loop
    if loop is None or loop.p95_ms <= LOOP_LAG_MS or (observed.app_cores >= ONE_CORE and not loop.blockers):
        return
    lines = tuple(f"{times}× blocked at {line}" for line, times in loop.blockers[:3])
    yield Bottleneck(
        kind="Event loop",
        title=f"runs callbacks {loop.p95_ms:.0f} ms late at p95",
        severity="high" if observed.app_cores < ONE_CORE else "medium",
        where=loop.blockers[0][0] if loop.blockers else None,
        evidence=(f"p50 {loop.p50_ms:.0f} ms, longest {loop.max_ms:.0f} ms", *lines),
        remedy="move the blocking call to a thread (asyncio.to_thread), or declare the endpoint with def",
    )


def busy_threads(observed: Observations) -> Iterator[Bottleneck]:
    """Sync endpoints that wait for a worker thread."""
    use = observed.evidence.threads
    if use is not None and use.busy_max >= use.total and use.waiting_share > 0.1:
        yield Bottleneck(
            kind="Threads",
            title=f"all {use.total} threads for sync endpoints are busy",
            severity="high",
            evidence=(f"up to {use.waiting_max} requests waited, {_percent(use.waiting_share)} of the time",),
            remedy="shorten what they wait for; more threads help only while CPU and pool are not full",
        )


def _endpoint(observed: Observations, route: str) -> str | None:
    return next((use.endpoint for use in observed.evidence.routes if use.route == route), None) or None


def _executions(*uses: StatementStats) -> str:
    total, executions = sum(use.total_s for use in uses), sum(use.executions for use in uses)
    return f"{executions:,} executions, {total * 1000 / max(executions, 1):.1f} ms each"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def abbreviate(statement: str) -> str:
    """Shorten a statement to one line of a report."""
    statement = _COLUMNS.sub(
        "SELECT … FROM ", statement
    )  # the tables matter more than a long list of columns
    return statement if len(statement) <= STATEMENT_SHOWN else f"{statement[: STATEMENT_SHOWN - 1]}…"


def _pool_lines(pool: PoolStats) -> tuple[str, ...]:
    overflow = f" + {pool.max_overflow}" if pool.max_overflow else ""
    lines = [
        f"{pool.size}{overflow} connections per worker, all in use {_percent(pool.full_share)} of the time",
        f"checkouts wait {pool.wait_p95_ms:.0f} ms at p95; {pool.wait_count:,} of {pool.checkouts:,} waited",
    ]
    return (*lines, f"{pool.timeouts:,} checkouts timed out") if pool.timeouts else tuple(lines)


Rule = Callable[[Observations], Iterator[Bottleneck]]
RULES: tuple[Rule, ...] = (
    n_plus_ones,
    missing_indexes,
    slow_statements,
    connection_churn,
    full_pools,
    busy_cpus,
    machine_limits,
    late_event_loops,
    busy_threads,
)
