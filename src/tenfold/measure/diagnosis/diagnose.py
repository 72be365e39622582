"""The diagnosis of a measurement: its limit, what uses it up, and what was not measured. Pure.

What hangs, and what fills the machine's memory or disk, is told beside the limit: it needs no queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tenfold.measure.diagnosis.bottleneck import Analysis, Bottleneck, Limit
from tenfold.measure.diagnosis.causes import find_causes
from tenfold.measure.diagnosis.facts import Facts
from tenfold.measure.diagnosis.limit import find_limit
from tenfold.measure.diagnosis.statement_causes import abbreviate, missing_indexes
from tenfold.measure.optional_steps import OptionalSteps

MOST = 8  # causes reported
STALLED_S = 2.0  # no request of any route finishes: they wait for one another …
HANGS_S, HANGS_ALONE_S = 3.0, 10.0  # … for this long, or this long while others finish, …
HANGS_TIMES = 3  # … and for this multiple of the longest one that finished
MANY_HANG = 0.02  # of the finished requests
PAUSES = 0.15  # of the time: the garbage collector's share that is mentioned


def diagnose(facts: Facts, *, limits: Mapping[str, float]) -> Analysis:
    """Return the limit and its causes. A step that fails is listed in ``not_measured``; none raises.

    ``limits`` are the thresholds of plain metrics, for the machine's memory and disk.
    """
    steps = OptionalSteps()
    hanging = steps.run("unfinished requests", lambda: tuple(_hanging(facts)), otherwise=())
    limit = steps.run("the limit", lambda: find_limit(facts), otherwise=None)
    causes = steps.run(
        "its causes", lambda: find_causes(facts, limit) if limit is not None else [], otherwise=[]
    )
    machine = steps.run("memory and disk", lambda: tuple(_machine(facts, limits)), otherwise=())
    if any(one.cause == "deadlock" for one in causes):  # why they hang
        hanging = ()
    found = (*hanging, *causes)[:MOST]
    present = steps.run("what is present", lambda: tuple(_present(facts, causes)), otherwise=())
    return Analysis(
        (*found, *machine),
        (*_not_measured(facts), *steps.failures),
        _with_pauses(limit, facts) if limit is not None else None,
        present,
    )


def _present(facts: Facts, causes: Sequence[Bottleneck]) -> Iterator[str]:
    """Say what was proven, although it uses little of the limit: it may after the next change."""
    named = {one.title for one in causes}
    for one in missing_indexes(facts):
        if one.proof == "proven" and one.title not in named:
            yield f"{one.title}: {one.evidence[-1]}; {one.remedy}"


def _with_pauses(limit: Limit, facts: Facts) -> Limit:
    memory, seconds = facts.limit.evidence.memory, facts.limit.evidence.seconds
    workers = max(facts.limit.evidence.workers, 1)
    share = memory.pause_s / (seconds * workers) if memory is not None and seconds else 0.0
    if limit.held_by != "run" or share < PAUSES:
        return limit
    told = f"garbage collection takes {100 * share:.0f} % of the time: gc.freeze() after start-up helps"
    return replace(limit, evidence=(*limit.evidence, told))


def _hanging(facts: Facts) -> Iterator[Bottleneck]:
    """Requests without a response at the end of a trial: a deadlock, or a call without a timeout.

    A backlog is something else: its requests finish one after the other, though late.
    """
    evidence = facts.limit.evidence
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
    names = [route.route for route in routes]
    others = f" and {len(names) - 1} more route{'s' if names[2:] else ''}" if names[1:] else ""
    yield Bottleneck(
        cause="deadlock" if waiting > hanging / 2 else "hang",
        kind="Requests",
        title=f"{names[0]}{others} {'do' if names[1:] else 'does'} not finish",
        severity="critical" if hanging > MANY_HANG * finished else "high",
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


def _machine(facts: Facts, limits: Mapping[str, float]) -> Iterator[Bottleneck]:
    """Memory and disk of the machine near their limits."""
    resources = facts.limit.resources
    if resources is None or resources.machine is None:
        return
    mean, most = resources.machine.mean, resources.machine.max
    if most.memory * 100 > limits["memory_usage"]:
        yield Bottleneck(
            cause="memory",
            kind="Memory",
            title="memory is nearly full",
            severity="high",
            evidence=(
                f"{100 * most.memory:.0f} % in use",
                f"tasks waited for memory {100 * mean.memory_pressure:.0f} % of the time",
            ),
            remedy="find the processes that grow, bound caches and result sets, or add memory",
        )
    if mean.iowait * 100 > limits["disk_io_wait"]:
        yield Bottleneck(
            cause="disk",
            kind="Disk I/O",
            title="CPUs wait for the disk",
            severity="medium",
            evidence=(
                f"iowait {100 * mean.iowait:.0f} % of CPU time",
                f"tasks waited for I/O {100 * mean.io_pressure:.0f} % of the time",
            ),
            remedy="give the database enough memory for its working set, or faster disks",
        )


def _why_no_pool(facts: Facts) -> str:
    kinds = facts.limit.evidence.pool_kinds
    if kinds:
        return f"the engine uses {' and '.join(kinds)}, which has no queue to observe"
    if not facts.limit.statements:
        return "no statement ran in these trials"
    return "no connection was checked out in these trials"


def _not_measured(facts: Facts) -> Iterator[str]:
    """Yield what was not observed; it must not be taken for healthy."""
    evidence = facts.limit.evidence
    seen = evidence.seen
    if not seen.get("requests"):
        yield "requests: not seen (no probe was connected, or no request arrived)"
    if not seen.get("statements"):
        yield "statements and pools: not seen (none of SQLAlchemy, Django, asyncpg and psycopg 3)"
    elif not seen.get("pool"):
        yield f"connection pool: not seen ({_why_no_pool(facts)})"
    if not seen.get("event loop"):
        yield "event loop: not seen"
    if seen.get("requests") and evidence.loop_clock is None and evidence.thread_clock is None:
        yield "what threads wait for: this system does not tell (Linux does)"
    if evidence.dropped:
        yield f"{evidence.dropped:,} requests: dropped, the probes' buffers were full"
    plans = facts.plans.values()
    yield from (f"plan of {abbreviate(plan.fingerprint)}: {plan.reason}" for plan in plans if plan.reason)
    unproven = {one.create: one for plan in plans for one in plan.missing if one.unproven}
    yield from (
        f"proof of an index on {one.table} ({one.column}): {one.unproven}" for one in unproven.values()
    )
    if seen.get("statements") and not plans:
        yield "query plans: EXPLAIN was not run"
    resources = facts.limit.resources
    if resources is None or resources.machine is None:
        yield "CPU, memory and disk: not sampled"
    else:
        yield from resources.not_measured
