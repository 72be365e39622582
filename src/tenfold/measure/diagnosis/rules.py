"""One rule for each kind of bottleneck: what it looks for in what a measurement saw, and what it says then.

Shares are of the slow requests' time: of all requests slower than the median of their own route, how much of
their time went there. Who waits for a connection waits for the statements of others: that time is the
statements', in proportion to the time for which each kept connections taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tenfold.measure.diagnosis.bottleneck import Bottleneck
from tenfold.measure.diagnosis.explain import MissingIndex, Plan
from tenfold.measure.diagnosis.resources import Resources
from tenfold.measure.probe.evidence import ROUND_TRIPS, Evidence, PoolStats, StatementStats

SMALL = 0.02  # a smaller share of the slow requests' time is not worth a line
FREQUENT = 0.15  # a statement that takes this much of it is named although each execution is quick
POOL_WAIT = 0.1  # of the objective, at p95: longer waits for a connection are named
IN_USE = 0.3  # of the time connections are taken: below, it is not the database that fills the pool
ONE_CORE = 0.9  # a Python process runs bytecode on one core at a time
MACHINE_FULL = 0.9
LOOP_LAG_MS = 50.0
STATEMENT_SHOWN = 120
CAUSE = 0.1  # of the time in the database: a full pool or a busy core may follow from it
MOSTLY = 0.5

_COLUMNS = re.compile(r"^SELECT .{40,}? FROM ")


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that the rules look at."""

    evidence: Evidence
    resources: Resources | None
    plans: Mapping[str, Plan]
    slow_ms: float
    limits: Mapping[str, float]

    def share(self, seconds: float) -> float | None:
        """Of the slow requests' time."""
        return min(seconds / self.evidence.slow_s, 1.0) if self.evidence.slow_s else None

    def explained(self, *uses: StatementStats) -> float | None:
        """The slow requests' time in these statements, and in waiting for connections that they kept."""
        waited = sum(route.slow_wait_s for route in self.evidence.routes)
        kept = sum(use.total_s for use in uses) / self.held_s if self.held_s else 0.0
        return self.share(sum(use.slow_s for use in uses) + waited * min(kept, 1.0))

    @property
    def held_s(self) -> float:
        """Connections taken, added up."""
        return sum(pool.held_s for pool in self.evidence.pools)

    @property
    def used_share(self) -> float:
        """Of the time for which connections are taken, the part in which statements ran."""
        ran = sum(use.total_s for use in self.evidence.statements)
        return min(ran / self.held_s, 1.0) if self.held_s else 0.0

    @property
    def app_cores(self) -> float:
        """Cores that the app's workers used, each on average."""
        app = self.resources.groups.get("app") if self.resources is not None else None
        return app.mean.cpu_cores / max(self.evidence.workers, 1) if app is not None else 0.0


def repetitions(case: Case) -> Iterator[Bottleneck]:
    """N+1: a statement from one line, again and again in one request."""
    for use in case.evidence.statements:
        if not use.repeating_requests or use.fingerprint in ROUND_TRIPS:
            continue
        yield Bottleneck(
            kind="Database",
            title=f"N+1 in {use.route}",
            severity="critical",
            where=use.site or _endpoint(case, use.route),
            share=case.explained(use),
            evidence=(
                f"{use.repetitions_mean:.0f} times one statement in a request, at most {use.executions_max}, "
                f"in {use.repeating_requests} of {use.requests} requests",
                _time(use),
                shown(use.fingerprint),
            ),
            remedy="load the related rows with the first statement (selectinload or joinedload), "
            "or ask for all keys at once (IN)",
        )


def missing_indexes(case: Case) -> Iterator[Bottleneck]:
    """Rows looked for by a column without an index; one index is named once, with all its statements."""
    named: dict[str, tuple[MissingIndex, list[StatementStats]]] = {}
    for use in case.evidence.statements:
        for missing in case.plans[use.fingerprint].missing if use.fingerprint in case.plans else ():
            named.setdefault(missing.create, (missing, []))[1].append(use)
    for missing, uses in named.values():
        proof = missing.proof
        if proof is not None and not proof.helps:
            continue
        wanted = "one page in order" if missing.ordered else f"{max(missing.rows, 1):,.0f}"
        seen = [f"{missing.table_rows:,} rows read for {wanted}", _time(*uses)]
        if proof is not None:
            seen.append(
                f"one look-up takes {proof.after_ms:.2f} ms with the index, {proof.before_ms:.1f} ms without"
            )
        yield Bottleneck(
            kind="Database",
            title=f"missing index on {missing.table} ({missing.column})",
            severity="critical",
            proof="proven" if proof is not None else "suspected",
            where=uses[0].site or None,
            share=case.explained(*uses),
            evidence=tuple(seen),
            remedy=missing.create,
        )


def slow_statements(case: Case) -> Iterator[Bottleneck]:
    """Statements that are slow on average, and quick ones that take much of the time together."""
    for use in case.evidence.statements:
        plan = case.plans.get(use.fingerprint)
        if use.fingerprint in ROUND_TRIPS or use.repeating_requests or (plan is not None and plan.missing):
            continue  # another rule's
        slow = use.mean_ms > case.limits["db_query_time_avg"]
        share = case.explained(use)
        if not use.route or not (slow or (share is not None and share >= FREQUENT)):
            continue
        yield Bottleneck(
            kind="Database",
            title=f"{'slow' if slow else 'frequent'} statement in {use.route}",
            severity="critical" if slow else "high",
            where=use.site or _endpoint(case, use.route),
            share=share,
            evidence=(_time(use), shown(use.fingerprint), *(plan.lines[:6] if plan is not None else ())),
            remedy="read its plan, ask for fewer rows, or keep the result in a cache"
            if slow
            else "keep the result in a cache, or ask less often",
        )


def connecting(case: Case) -> Iterator[Bottleneck]:
    """Connections made within requests: no pool, or one that overflows all the time."""
    uses = [use for use in case.evidence.statements if use.fingerprint == "CONNECT" and use.route]
    share = case.share(sum(use.slow_s for use in uses))
    made = sum(use.executions for use in uses)
    if share is not None and share >= SMALL and made > 0.05 * case.evidence.requests:
        yield Bottleneck(
            kind="Connection Pool",
            title="connections are made again and again",
            severity="high",
            share=share,
            evidence=(f"{made:,} made in {case.evidence.requests:,} requests", _time(*uses)),
            remedy="keep as many connections as are used at once: pool_size in place of max_overflow",
        )


def small_pools(case: Case) -> Iterator[Bottleneck]:
    """Pools in which nearly everything is taken, or waited for."""
    for pool in case.evidence.pools:
        limit = case.limits["db_connection_pool_usage"] / 100
        if pool.wait_p95_ms <= POOL_WAIT * case.slow_ms and not (pool.timeouts or pool.full_share > limit):
            continue
        yield Bottleneck(
            kind="Connection Pool",
            title=f"full {pool.full_share:.0%} of the time",
            severity="high",
            where=pool.site or None,
            share=case.share(sum(route.slow_wait_s for route in case.evidence.routes)),
            evidence=(
                *_pool_lines(pool),
                f"statements run in {case.used_share:.0%} of the time they are taken",
            ),
            remedy="hold connections for a shorter time; enlarge the pool when it is still full after that"
            if case.used_share >= IN_USE
            else "take a connection later and give it back before other work (calls to others, rendering)",
        )


def processors(case: Case) -> Iterator[Bottleneck]:
    """The app on its one core, the database, the machine."""
    resources = case.resources
    if resources is None or resources.machine is None:
        return
    machine, groups = resources.machine.mean, resources.groups
    if case.app_cores >= ONE_CORE:
        costliest = case.evidence.routes[0].route if case.evidence.routes else "the costliest route"
        yield Bottleneck(
            kind="CPU",
            title="the app's processes are at one core each",
            severity="high",
            evidence=(
                f"{case.app_cores:.2f} cores a worker, {case.evidence.workers} workers; "
                "Python runs on one core a process",
            ),
            remedy=f"profile {costliest} (profile_function), or run more instances where cores are free",
        )
    if machine.cpu >= min(MACHINE_FULL, case.limits["cpu_usage"] / 100 + 0.1):
        yield _machine(case, machine.cpu, machine.cpu_pressure)
    database = groups.get("database")
    if database is not None and database.mean.cpu_cores >= 0.7 * resources.cores:
        yield _database(case, f"{database.mean.cpu_cores:.2f} of {resources.cores} cores")


def _database(case: Case, cores: str) -> Bottleneck:
    """A database without a free core: what could be saved comes before what replicas could take."""
    uses = [use for use in case.evidence.statements if use.fingerprint not in ROUND_TRIPS]
    ran_s = sum(use.total_s for use in uses) or 1.0
    saved = sum(use.total_s for use in uses if _is_wasteful(case, use)) / ran_s
    reads = sum(use.total_s for use in uses if _is_read(use) and not _is_wasteful(case, use)) / ran_s
    if saved >= CAUSE:
        remedy = f"these first: they cost less to mend than a server; replicas could take {reads:.0%}"
    elif reads >= MOSTLY:
        remedy = f"keep results in a cache, or read from replicas, which could take {reads:.0%}"
    else:
        remedy = "write less, or in larger batches: replicas take no writes off it"
    return Bottleneck(
        kind="CPU",
        title="the database works at its limit",
        severity="high",
        evidence=(
            cores,
            f"of its statements' time {saved:.0%} are N+1 or lack an index, {reads:.0%} are other reads",
        ),
        remedy=remedy,
    )


def _is_wasteful(case: Case, use: StatementStats) -> bool:
    plan = case.plans.get(use.fingerprint)
    missing = plan.missing if plan is not None else ()
    return bool(use.repeating_requests) or any(one.proof is None or one.proof.helps for one in missing)


def _is_read(use: StatementStats) -> bool:
    """Whether a replica could answer it; what locks rows, or writes in a WITH, is none."""
    words = use.fingerprint.upper()
    writes = (" FOR ", "INSERT INTO", "UPDATE ", "DELETE FROM")
    return words.startswith(("SELECT", "WITH")) and not any(word in words for word in writes)


def _machine(case: Case, cpu: float, pressure: float) -> Bottleneck:
    """A machine without a free core, and who takes it."""
    assert case.resources is not None
    groups, cores = case.resources.groups, case.resources.cores
    others = cpu * cores - sum(use.mean.cpu_cores for use in groups.values())
    used = "".join(f"{name} {use.mean.cpu_cores:.2f}, " for name, use in groups.items())
    strange = others > cores / 2
    return Bottleneck(
        kind="Machine" if strange else "CPU",
        title="other programs take its cores" if strange else "the machine has no free core",
        severity="high",
        evidence=(
            f"{cpu:.0%} of {cores} cores used: {used}others {max(others, 0):.2f}",
            f"something waited for a core {pressure:.0%} of the time",
        ),
        remedy="stop what else runs here and measure again"
        if strange
        else "do less work per request, or give the busiest of them a machine of its own",
    )


def machine_limits(case: Case) -> Iterator[Bottleneck]:
    """Memory and disk of the machine."""
    if case.resources is None or case.resources.machine is None:
        return
    mean, most = case.resources.machine.mean, case.resources.machine.max
    if most.memory * 100 > case.limits["memory_usage"]:
        yield Bottleneck(
            kind="Memory",
            title="memory runs out",
            severity="high",
            evidence=(
                f"{most.memory:.0%} in use",
                f"{mean.memory_pressure:.0%} of the time waited for memory",
            ),
            remedy="find the group that grows, bound caches and result sets, or add memory",
        )
    if mean.iowait * 100 > case.limits["disk_io_wait"]:
        yield Bottleneck(
            kind="Disk I/O",
            title="processors wait for the disk",
            severity="medium",
            evidence=(f"{mean.iowait:.0%} of the processors' time", f"{mean.io_pressure:.0%} under pressure"),
            remedy="give the database memory for its working set, or faster disks",
        )


def blocked_loops(case: Case) -> Iterator[Bottleneck]:
    """The event loop stood still; not when the processor alone explains it."""
    loop = case.evidence.loop
    if loop is None or loop.p95_ms <= LOOP_LAG_MS or (case.app_cores >= ONE_CORE and not loop.blockers):
        return
    lines = tuple(f"{times}× at {line}" for line, times in loop.blockers[:3])
    yield Bottleneck(
        kind="Event loop",
        title=f"{loop.p95_ms:.0f} ms late at p95",
        severity="high" if case.app_cores < ONE_CORE else "medium",
        where=loop.blockers[0][0] if loop.blockers else None,
        evidence=(f"p50 {loop.p50_ms:.0f} ms, longest {loop.max_ms:.0f} ms", *lines),
        remedy="call what blocks in a thread (asyncio.to_thread), or write that endpoint with def",
    )


def threads(case: Case) -> Iterator[Bottleneck]:
    """Sync endpoints waited for a thread."""
    use = case.evidence.threads
    if use is not None and use.busy_max >= use.total and use.waiting_share > 0.1:
        yield Bottleneck(
            kind="Threads",
            title=f"all {use.total} threads for sync endpoints are taken",
            severity="high",
            evidence=(f"up to {use.waiting_max} requests waited, {use.waiting_share:.0%} of the time",),
            remedy="shorten what they wait for; more threads help only while processor and pool have room",
        )


def _endpoint(case: Case, route: str) -> str | None:
    return next((use.endpoint for use in case.evidence.routes if use.route == route), None) or None


def _time(*uses: StatementStats) -> str:
    total, executions = sum(use.total_s for use in uses), sum(use.executions for use in uses)
    return f"{executions:,} executions, {total * 1000 / max(executions, 1):.1f} ms each"


def shown(statement: str) -> str:
    """A statement as a line of a report."""
    statement = _COLUMNS.sub("SELECT … FROM ", statement)  # what is asked says more than every column of it
    return statement if len(statement) <= STATEMENT_SHOWN else f"{statement[: STATEMENT_SHOWN - 1]}…"


def _pool_lines(pool: PoolStats) -> tuple[str, ...]:
    overflow = f" + {pool.max_overflow}" if pool.max_overflow else ""
    lines = [
        f"{pool.size}{overflow} connections a worker, full {pool.full_share:.0%} of the time",
        f"waits {pool.wait_p95_ms:.0f} ms at p95, {pool.wait_count:,} of {pool.checkouts:,} checkouts waited",
    ]
    return (*lines, f"{pool.timeouts:,} gave up waiting") if pool.timeouts else tuple(lines)


RULES: tuple[Callable[[Case], Iterator[Bottleneck]], ...] = (
    repetitions,
    missing_indexes,
    slow_statements,
    connecting,
    small_pools,
    processors,
    machine_limits,
    blocked_loops,
    threads,
)
