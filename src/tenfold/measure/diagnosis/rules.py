"""One rule for each kind of bottleneck: its condition, and the sentences of the report.

Shares are of the slow requests' time: of all requests slower than the median of their own route, how much of
their time went there. A request that waits for a connection waits for the statements of other requests: that
time is attributed to the statements, in proportion to the time for which each of them held connections.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tenfold.measure.diagnosis.bottleneck import Bottleneck, Severity
from tenfold.measure.diagnosis.explain import IndexProof, MissingIndex, Plan
from tenfold.measure.diagnosis.resources import Resources
from tenfold.measure.probe.evidence import ROUND_TRIPS, Evidence, PoolStats, StatementStats

FEW = 10  # executions: fewer of them are not critical, whatever they took
CHURN = 0.05  # of the requests: as many new connections, or engines, are worth a line
CHURN_TITLE = "many requests open a new connection"
MANY_POOLS = 500  # from one line; the probes count no more than 1,000
STALLED_S = 2.0  # no request of any route finishes: they wait for one another …
HANGS_S, HANGS_ALONE_S = 3.0, 10.0  # … for this long, or this long while others finish, …
HANGS_TIMES = 3  # … and for this multiple of the longest one that finished
SMALL = 0.02  # a smaller share of the slow requests' time is not reported
FREQUENT = 0.15  # a statement with this share of it is reported although each execution is quick
POOL_WAIT = 0.1  # of the objective's slow_ms: a longer p95 wait for a connection is reported
IN_USE = 0.3  # of the checked-out time: below, it is not the database that fills the pool
BUSY = 0.3  # of all cores: a database that uses more slows its own statements down
STARVED = 0.7  # cores per worker: from here on lines are late because they wait for the interpreter
ONE_CORE = 0.9  # a Python process runs bytecode on one core at a time
MACHINE_FULL = 0.9
LOOP_LAG_MS = 50.0
STATEMENT_SHOWN = 120
CAUSE = 0.1  # of the database time: a full pool or a busy core may follow from it
MOSTLY = 0.5

_AGGREGATE = re.compile(r"^SELECT\s+(?:COALESCE\s*\(\s*)?(?:COUNT|SUM|MIN|MAX|AVG|EXISTS)\s*\(")
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
        """Mean cores used per worker of the app in the trial in which it used the most."""
        return self.cores_of("app") / max(self.evidence.workers, 1)

    def cores_of(self, group: str) -> float:
        """Return the mean cores that a group used in the trial in which it used the most."""
        return self.resources.busiest[0].get(group, 0.0) if self.resources is not None else 0.0

    @property
    def is_database_busy(self) -> bool:
        """True if statements may be slow because of one another."""
        return self.resources is not None and self.cores_of("database") >= BUSY * self.resources.cores

    @property
    def is_starved(self) -> bool:
        """True if the app's processes, or all processes, have too little CPU: then every line is slow."""
        machine = self.resources.busiest[1] if self.resources is not None else None
        return self.app_cores >= STARVED or (machine is not None and machine.cpu >= MACHINE_FULL)


def n_plus_ones(observed: Observations) -> Iterator[Bottleneck]:
    """N+1: a statement from one line, many times in one request; one bottleneck for each cause.

    A line is one cause in all routes that run it, and the lines of the same routes are one loop.
    """
    lines: dict[str, list[StatementStats]] = {}
    for use in observed.evidence.statements:
        if use.repeating_requests and use.fingerprint not in ROUND_TRIPS:
            lines.setdefault(use.site or use.route, []).append(use)
    causes: dict[frozenset[str], list[StatementStats]] = {}
    for uses in lines.values():
        causes.setdefault(frozenset(use.route for use in uses), []).extend(uses)
    for uses in causes.values():
        yield _n_plus_one(observed, sorted(uses, key=lambda use: -use.total_s))


def _n_plus_one(observed: Observations, uses: list[StatementStats]) -> Bottleneck:
    """The bottleneck of statements that one loop repeats, the costliest first."""
    use, share = uses[0], observed.explained_share(*uses)
    others = [one for one in uses[1:] if one.site != use.site or one.route == use.route]
    sites = list(dict.fromkeys(one.site for one in others if one.site and one.site != use.site))
    more = f", at {', '.join(sites[:2])}{' …' if sites[2:] else ''}" if sites else ""
    return Bottleneck(
        kind="Database",
        title=f"N+1 in {_routes(uses)}",
        severity=severity(share, executions=sum(one.executions for one in uses)),
        where=use.site or _endpoint(observed, use.route),
        share=share,
        evidence=(
            f"one statement runs {use.repetitions_mean:.0f} times per request, "
            f"at most {use.executions_max}, in {use.repeating_requests} of {use.requests} requests",
            *((f"{'as do' if others[1:] else 'as does'} {len(others)} more{more}",) if others else ()),
            _executions(*uses),
            abbreviate(use.fingerprint),
        ),
        remedy=repetition_remedy(use.fingerprint),
    )


def repetition_remedy(statement: str) -> str:
    """Return how to run a repeated statement once, by its kind."""
    text = statement.upper()
    if text.startswith("INSERT"):
        return "write all rows with one statement (session.add_all, or insert() with a list of values)"
    if text.startswith(("UPDATE", "DELETE")):
        return "change all rows with one statement (WHERE … IN), or in batches"
    if " FOR UPDATE" in text or " FOR SHARE" in text:
        return "lock all rows with one statement (WHERE … IN … FOR UPDATE), in the order of their keys"
    if _AGGREGATE.search(text):
        return "compute all of them with one statement (GROUP BY the key), or count in the first statement"
    if not text.startswith(("SELECT", "WITH")) or " FROM " not in text:
        return "run it once for all of them, outside of the loop"
    if " WHERE " not in text:
        return "run it once and keep its rows, outside of the loop"
    return (
        "load the related rows with the first statement (selectinload or joinedload), "
        "or query all keys at once (IN)"
    )


def severity(share: float | None, *, executions: int | None = None) -> Severity:
    """Return the severity of a share of the slow requests' time; few executions are no more than medium."""
    if share is None:
        found: Severity = "medium"
    else:
        limits: tuple[tuple[float, Severity], ...] = ((0.3, "critical"), (0.1, "high"), (0.05, "medium"))
        found = next((name for limit, name in limits if share >= limit), "low")
    few = executions is not None and executions < FEW
    return "medium" if few and found in ("critical", "high") else found


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
        share = observed.explained_share(*uses)
        if proof is not None:
            evidence.append(
                f"one look-up takes {proof.after_ms:.2f} ms with the index, {proof.before_ms:.1f} ms without"
            )
            share = None if share is None else share * _saved_share(observed, proof, uses)
        yield Bottleneck(
            kind="Database",
            title=f"missing index on {missing.table} ({missing.column})",
            severity=severity(share, executions=sum(use.executions for use in uses)),
            proof="proven" if proof is not None else "suspected",
            where=uses[0].site or None,
            share=share,
            evidence=tuple(evidence),
            remedy=missing.create,
        )


def _saved_share(observed: Observations, proof: IndexProof, uses: list[StatementStats]) -> float:
    """Return the share of the statements' time that the index saves.

    It is the planner's estimate for the whole statement, and no more than the look-up's measured saving,
    except where the database is so busy that its load makes each look-up slower than the proof found it.
    """
    saved = 1 - proof.cost_after / proof.cost_before if proof.cost_before else 1.0
    mean_ms = sum(use.total_s for use in uses) * 1000 / max(sum(use.executions for use in uses), 1)
    if not observed.is_database_busy and mean_ms > 0:
        saved = min(saved, (proof.before_ms - proof.after_ms) / mean_ms)
    return min(max(saved, 0.0), 1.0)


def slow_statements(observed: Observations) -> Iterator[Bottleneck]:
    """Statements that are slow on average, and quick ones that take much of the time in total."""
    by_line: dict[tuple[str, str], list[StatementStats]] = {}
    for use in observed.evidence.statements:
        plan = observed.plans.get(use.fingerprint)
        if use.fingerprint in ROUND_TRIPS or use.repeating_requests or (plan is not None and plan.missing):
            continue  # reported by another rule
        if use.route:
            by_line.setdefault((use.fingerprint, use.site), []).append(use)
    for (fingerprint, site), uses in by_line.items():
        executions = sum(use.executions for use in uses)
        slow = (
            sum(use.total_s for use in uses) * 1000 / max(executions, 1)
            > observed.limits["db_query_time_avg"]
        )
        share, plan = observed.explained_share(*uses), observed.plans.get(fingerprint)
        if not (slow or (share is not None and share >= FREQUENT)):
            continue
        yield Bottleneck(
            kind="Database",
            title=f"{'slow' if slow else 'frequent'} statement in {_routes(uses)}",
            severity=severity(share, executions=executions),
            where=site or _endpoint(observed, uses[0].route),
            share=share,
            evidence=(
                _executions(*uses),
                abbreviate(fingerprint),
                *(plan.lines[:6] if plan is not None else ()),
            ),
            remedy=_slow_remedy(fingerprint) if slow else "cache the result, or run it less often",
        )


def _slow_remedy(statement: str) -> str:
    if statement.upper().startswith(("SELECT", "WITH")) and " FOR " not in statement.upper():
        return "read its plan, fetch fewer rows, or cache the result"
    return "read its plan, and look for locks that it waits for: shorten the transactions that hold them"


def connection_churn(observed: Observations) -> Iterator[Bottleneck]:
    """Connections opened within requests: no pool, an engine for each request, or a pool that overflows."""
    uses = [use for use in observed.evidence.statements if use.fingerprint == "CONNECT" and use.route]
    uses.sort(key=lambda use: -use.total_s)
    share = observed.share(sum(use.slow_s for use in uses))
    opened = sum(use.executions for use in uses)
    if share is None or share < SMALL or opened <= CHURN * observed.evidence.requests:
        return
    where, remedy = _churn_cause(observed, uses)
    yield Bottleneck(
        kind="Connection Pool",
        title=CHURN_TITLE,
        severity=severity(share),
        where=where or None,
        share=share,
        evidence=(f"{opened:,} opened in {observed.evidence.requests:,} requests", _executions(*uses)),
        remedy=remedy,
    )


def _churn_cause(observed: Observations, uses: list[StatementStats]) -> tuple[str, str]:
    """Return the line and the remedy of connections that are opened in requests."""
    evidence = observed.evidence
    site = next((use.site for use in uses if use.site), "") or _endpoint(observed, uses[0].route) or ""
    engines = min(evidence.workers + CHURN * evidence.requests, MANY_POOLS)
    many = [pool for pool in evidence.pools if pool.pools > engines]
    if many:
        where = max(many, key=lambda pool: pool.pools).site
        return where or site, "create the engine once, when the module is imported, and not in each request"
    if not evidence.pools and evidence.pool_kinds and "NullPool" in evidence.pool_kinds:
        return site, "keep connections open: create the engine without poolclass=NullPool"
    if not evidence.pools:
        return site, "keep connections open in a pool (create_engine has one; Django: CONN_MAX_AGE)"
    pool = max(evidence.pools, key=lambda one: one.checkouts)
    if pool.max_overflow == 0:
        return (
            site,
            "find why connections are closed early: pool_recycle, invalidated or detached connections",
        )
    return (
        pool.site or site,
        "raise pool_size to the number of connections used at once, and lower max_overflow",
    )


def full_pools(observed: Observations) -> Iterator[Bottleneck]:
    """Pools without a free connection most of the time, or with long waits."""
    for pool in observed.evidence.pools:
        limit = observed.limits["db_connection_pool_usage"] / 100
        if pool.wait_p95_ms <= POOL_WAIT * observed.slow_ms and not (
            pool.timeouts or pool.waiting or pool.full_share > limit
        ):
            continue
        share = observed.share(sum(route.slow_wait_s for route in observed.evidence.routes))
        if (pool.waiting or pool.timeouts) and (share or 0.0) < SMALL:
            share = None  # some never got a connection: that is a line of the report, whatever time it took
        yield Bottleneck(
            kind="Connection Pool",
            title=f"full {_percent(pool.full_share)} of the time",
            severity="high",
            where=pool.site or None,
            share=share,
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
    machine = resources.busiest[1] or resources.machine.mean
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
    database = observed.cores_of("database")
    if database >= 0.7 * resources.cores:
        yield _busy_database(observed, f"{database:.2f} of {resources.cores} cores used")


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
    groups, cores = observed.resources.busiest[0], observed.resources.cores
    others = cpu * cores - sum(groups.values())
    used = "".join(f"{name} {one:.2f}, " for name, one in groups.items())
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


def unfinished_requests(observed: Observations) -> Iterator[Bottleneck]:
    """Requests without a response at the end of a trial: a deadlock, or a call without a timeout.

    A backlog is something else: its requests finish one after the other, though late.
    """
    evidence = observed.evidence
    hangs_s = HANGS_S if evidence.stalled_s >= STALLED_S else HANGS_ALONE_S
    routes = [
        route
        for route in sorted(evidence.routes, key=lambda route: -route.unfinished)
        if route.unfinished and route.unfinished_s >= max(hangs_s, HANGS_TIMES * route.longest_s)
    ]
    if not routes:
        return
    lines = evidence.unfinished_at[:3]
    hanging = sum(route.unfinished for route in routes)
    waiting = sum(route.unfinished_waiting for route in routes)
    finished = sum(route.requests for route in routes)
    yield Bottleneck(
        kind="Requests",
        title=f"{_names([route.route for route in routes])} {'do' if routes[1:] else 'does'} not finish",
        severity="critical" if hanging > SMALL * finished else "high",
        where=lines[0][0] if lines else routes[0].endpoint or None,
        evidence=(
            f"without a response at the end of a trial: {hanging:,}, "
            f"the oldest for {max(route.unfinished_s for route in routes):.1f} s; finished: {finished:,}",
            *((f"waiting for a connection of the pool: {waiting:,}",) if waiting else ()),
            *(f"standing at {line}: {count:,}" for line, count in lines),
        ),
        remedy="return connections before other work that needs one, and give the pool a timeout"
        if waiting > hanging / 2
        else "find what they wait for there (a lock, a call without a timeout) and bound the wait",
    )


def late_event_loops(observed: Observations) -> Iterator[Bottleneck]:
    """A late event loop, unless the busy CPU alone explains it."""
    loop = observed.evidence.loop
    if loop is None or loop.p95_ms <= LOOP_LAG_MS:
        return
    samples = sum(times for _, times in loop.blockers)
    line, times = loop.blockers[0] if loop.blockers else ("", 0)
    blocks = times > samples / 2  # else the loop was late on any line on which it happened to be
    if observed.app_cores >= ONE_CORE and not blocks:
        return
    yield Bottleneck(
        kind="Event loop",
        title=f"has not run for {loop.stuck_s:.0f} s"
        if loop.stuck_s
        else f"runs callbacks {loop.p95_ms:.0f} ms late at p95",
        severity="high" if observed.app_cores < ONE_CORE else "medium",
        where=line if blocks else None,
        evidence=(
            f"p50 {loop.p50_ms:.0f} ms, longest {loop.max_ms:.0f} ms",
            *(f"late {count}× at {place}" for place, count in loop.blockers[:3]),
        ),
        remedy=_loop_remedy(observed, blocks=blocks),
    )


def _loop_remedy(observed: Observations, *, blocks: bool) -> str:
    if observed.is_starved and blocks:
        return (
            "make this line cheaper, or compute in another process: it uses the CPU, and a thread of the "
            "same process does not give it more"
        )
    if observed.is_starved:
        return "find what uses the CPU: the loop waits for a core or the interpreter, on whatever line it is"
    if blocks:
        return "move the blocking call to a thread (asyncio.to_thread), or declare the endpoint with def"
    return "find the call that blocks: no line of the service stands out"


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


def _routes(uses: Sequence[StatementStats]) -> str:
    """Return the route that spends the most time there, and the number of the others."""
    return _names([use.route for use in sorted(uses, key=lambda use: -use.total_s)])


def _names(routes: Sequence[str]) -> str:
    first, *others = dict.fromkeys(routes)
    return f"{first} and {len(others)} more route{'s' if others[1:] else ''}" if others else first


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
        f"checkouts wait {pool.wait_p95_ms:.0f} ms at p95; {pool.wait_count + pool.waiting:,} of "
        f"{max(pool.checkouts + pool.timeouts, pool.wait_count) + pool.waiting:,} waited",
    ]
    if pool.waiting:
        lines.append(f"{pool.waiting:,} of them still waited at the end, the longest {pool.waiting_s:.1f} s")
    return (*lines, f"{pool.timeouts:,} checkouts timed out") if pool.timeouts else tuple(lines)


Rule = Callable[[Observations], Iterator[Bottleneck]]
RULES: tuple[Rule, ...] = (
    unfinished_requests,
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
