"""What uses a limit up: causes with their line, their share and the remedy that fits. Pure.

A cause is named from ``SHARE`` of the limit's use on; what uses less is merely present.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import chain

from tenfold.measure.diagnosis.bottleneck import Bottleneck, Limit, found, with_share
from tenfold.measure.diagnosis.facts import Facts, SampleKey, Sums
from tenfold.measure.diagnosis.limit import call_host
from tenfold.measure.diagnosis.python_causes import find_python_causes
from tenfold.measure.diagnosis.statement_causes import (
    SHARE,
    STATEMENT_KINDS,
    abbreviate,
    commits,
    connects,
    executions,
    find_statement_causes,
    is_large,
    keys_of,
    loops,
    missing_indexes,
    n_plus_one,
    over_fetching,
    route_names,
    scaled,
    slow_statements,
    statement_seconds,
)
from tenfold.measure.probe.evidence import SampleStats, StatementStats

IDLE = 0.5  # of the time in which a transaction blocks others

_DOES = {
    "db": "waits for a statement",
    "http": "waits for another service",
    "io": "waits for a socket or file",
    "lock": "waits for a lock",
    "loop": "waits for the event loop",
    "run": "computes",
    "send": "sends its response",
    "sleep": "sleeps",
}
_UNBLOCKS = {
    "db": "use an async driver, or declare the endpoint with def: it then runs in a thread",
    "http": "use an async client (httpx.AsyncClient), or declare the endpoint with def",
    "sleep": "await asyncio.sleep(…) in place of time.sleep(…)",
}
_SESSIONS = {
    "cpu": "computing",
    "open": "idle in its transaction",
    "other": "running",
    "wal": "committing",
}


def find_causes(facts: Facts, limit: Limit) -> list[Bottleneck]:
    """Return what uses the limit up, the largest share first; empty when nothing stands out."""
    by_resource: Mapping[str, Callable[[], Iterator[Bottleneck]]] = {
        "commit": lambda: commits(facts.limit),
        "database": lambda: find_statement_causes(facts),
        "delay": lambda: _of_waits(facts, limit),
        "external": lambda: _of_calls(facts, limit),
        "lock": lambda: _of_locks(facts),
        "loop": lambda: _of_blocked_loop(facts),
        "machine": lambda: _of_machine(facts),
        "none": lambda: find_statement_causes(facts) if limit.held_by == "db" else iter(()),
        "pool": lambda: _of_pool(facts, limit),
        "python": lambda: find_python_causes(facts),
        "quota": lambda: _of_machine(facts),
        "redis": lambda: _of_waits(facts, limit),
        "row locks": lambda: _of_row_locks(facts),
        "threads": lambda: _of_waits(facts, limit),
    }
    causes = by_resource[limit.resource]() if limit.resource in by_resource else iter(())
    return sorted(causes, key=lambda one: -(1.0 if one.share is None else one.share))


def _of_pool(facts: Facts, limit: Limit) -> Iterator[Bottleneck]:
    """What requests do while they hold a connection."""
    if limit.held_by == "pool":
        yield from _of_deadlocks(facts)
        return
    if limit.held_by == "leak":
        yield from _of_leaks(facts)
        return
    held: Sums[SampleKey] = Sums()
    for one in facts.limit.holders:
        held[SampleKey(one.route, one.line, one.detail, one.state)] += one.seconds
    total = held.total
    in_statements = sum(seconds for key, seconds in held.items() if key.place == "db") / total
    for uses in loops(facts.limit):
        cause = n_plus_one(facts.limit, uses, sum(held.pop(key) for key in keys_of(uses, held)) / total)
        if is_large(cause):
            yield cause
    causes = [*missing_indexes(facts), *over_fetching(facts.limit), *connects(facts.limit)]
    slow = slow_statements(facts, {one.where for one in causes})
    yield from scaled(chain(causes, slow), in_statements)
    yield from _held_meanwhile(facts, held, total)


def _held_meanwhile(facts: Facts, held: Sums[SampleKey], total: float) -> Iterator[Bottleneck]:
    """What else they do, by line; statements are left out."""
    lines: Sums[SampleKey] = Sums()
    for key, seconds in held.items():
        if key.place not in ("db", "pool") and key.detail not in STATEMENT_KINDS:
            lines[key._replace(detail=key.detail if key.place == "http" else "")] += seconds
    for key, seconds in _with_lines(lines).ranked()[:3]:
        if seconds < SHARE * total:
            continue
        yield found(
            "held_during_call",
            "Connection Pool",
            f"{key.route} {_doing(key)} while it holds a connection",
            share=seconds / total,
            where=key.line or facts.limit.endpoint(key.route),
            evidence=(f"connections are held {100 * seconds / total:.0f} % of their time for this",),
            remedy="return the connection before this (end the session or transaction), or take it after",
        )


def _of_deadlocks(facts: Facts) -> Iterator[Bottleneck]:
    lines = _grouped(facts, lambda one: one.state == "pool" and one.holds)
    for key, _ in lines.ranked()[:1]:
        yield found(
            "deadlock",
            "Connection Pool",
            f"{key.route} waits for a second connection while it holds one",
            share=None,
            where=key.line or facts.limit.endpoint(key.route),
            evidence=("those who hold a connection wait for another: none is returned before the timeout",),
            remedy="use one connection (one session) in a request, or return it before the next is taken",
        )


def _of_leaks(facts: Facts) -> Iterator[Bottleneck]:
    pool = facts.limit.pools[0]
    site = next((use.site for use in facts.limit.statements if use.site), "")
    yield found(
        "leak",
        "Connection Pool",
        f"{pool.held_after} connections are held by requests that have ended",
        share=None,
        where=site or pool.site or None,
        evidence=(f"the pool has {pool.size + max(pool.max_overflow, 0)}",),
        remedy="return each connection: with Session(…), or a dependency that closes it",
    )


def _of_machine(facts: Facts) -> Iterator[Bottleneck]:
    """What uses the cores: Python in the app and statements in the database, by the cores of each."""
    app, database = facts.limit.cores_of("app"), facts.limit.cores_of("database")
    whole = (app + database) or 1e-9
    causes: dict[tuple[str, str | None], Bottleneck] = {}
    for cores, some in ((app, find_python_causes(facts)), (database, find_statement_causes(facts))):
        for one in some:
            key = (one.cause, one.where)
            before = causes[key].share or 0.0 if key in causes else 0.0
            causes[key] = with_share(causes.get(key, one), before + (one.share or 0.0) * cores / whole)
    yield from filter(is_large, causes.values())


def _of_row_locks(facts: Facts) -> Iterator[Bottleneck]:
    """The statement that waits, and what the transaction at the head of the queue does."""
    view = facts.limit.database
    total = sum(view.blockers.values()) or 1e-9
    by_waiter: dict[str, Sums[tuple[str, str]]] = defaultdict(Sums)
    for (waiter, blocker, kind), sessions in view.blockers.items():
        by_waiter[waiter][blocker, kind] += sessions
    for waiter, roots in by_waiter.items():
        if roots.total < SHARE * total:
            continue
        blocker, kind = roots.largest(("", ""))
        use = next((one for one in facts.limit.statements if one.fingerprint == waiter), None)
        idle = sum(sessions for (_, of), sessions in roots.items() if of == "open") / roots.total
        yield found(
            "row_lock",
            "Database",
            f"transactions queue for a row in {use.route if use else 'the database'}",
            share=roots.total / total,
            where=(use.site if use else "") or None,
            evidence=(
                f"waits: {abbreviate(waiter)}",
                f"holds: {abbreviate(blocker)}, {_SESSIONS.get(kind, kind)}",
                *(_while_idle(facts, idle) if idle >= IDLE else ()),
            ),
            remedy="commit before other work: the holder waits for the app, not for the database"
            if idle >= IDLE
            else "take the lock last and commit at once, with nothing else inside the transaction; "
            "a counter can be rows that are added up",
        )


def _while_idle(facts: Facts, idle: float) -> Iterator[str]:
    """Say what the app does while a transaction that blocks others is idle."""
    doing = _grouped(facts, lambda one: one.holds and one.state not in ("db", "pool"))
    for key, _ in doing.ranked()[:1]:
        at = f" at {key.line}" if key.line else ""
        yield f"the transaction is idle {100 * idle:.0f} % of that time: the app {_doing(key)}{at}"


def _of_locks(facts: Facts) -> Iterator[Bottleneck]:
    lines = _grouped(facts, lambda one: one.state == "lock" and bool(one.route))
    for key, seconds in lines.ranked()[:3]:
        if seconds < SHARE * lines.total:
            continue
        others = _grouped(facts, lambda one: one.route == key.route and one.state not in ("lock", "thread"))  # noqa: B023
        inside = next((one for one, _ in others.ranked()), None)
        at = f" at {inside.line}" if inside is not None and inside.line else ""
        yield found(
            "lock",
            "Lock",
            f"requests of {key.route} wait for a lock",
            share=seconds / lines.total,
            where=key.line or facts.limit.endpoint(key.route),
            evidence=(f"meanwhile another {_doing(inside)}{at}",) if inside is not None else (),
            remedy="hold the lock for less time: nothing that waits inside it; or one lock for each key",
        )


def _of_blocked_loop(facts: Facts) -> Iterator[Bottleneck]:
    """Calls that block the event loop, by line."""
    lines = _grouped(facts, lambda one: one.place == "loop" and one.state != "run")
    for key, seconds in lines.ranked()[:5]:
        if seconds < SHARE * lines.total:
            continue
        yield found(
            "blocking_call",
            "Event loop",
            f"{key.route or 'the app'} {_doing(key)} on the event loop",
            share=seconds / lines.total,
            where=key.line or facts.limit.endpoint(key.route),
            evidence=("no other request of this worker proceeds meanwhile",),
            remedy=_UNBLOCKS.get(
                key.place, "move it to a thread (asyncio.to_thread), or declare the endpoint with def"
            ),
        )
    if any(key.place == "db" for key in lines):
        for uses in loops(facts.limit):
            share = sum(use.total_s for use in uses) / statement_seconds(facts.limit)
            yield from filter(is_large, [n_plus_one(facts.limit, uses, share)])


def _of_waits(facts: Facts, limit: Limit) -> Iterator[Bottleneck]:
    """What requests wait for, in threads or at any load."""
    if limit.held_by == "db":
        yield from find_statement_causes(facts)
        return
    if limit.held_by in ("run", "loop"):
        yield from find_python_causes(facts)
        return
    cause, kind, remedy = {
        "threads": (
            "threads",
            "Threads",
            "an async endpoint and client hold no thread meanwhile; more threads do as well",
        ),
        "redis": ("redis", "Redis", limit.remedy),
    }.get(limit.resource, ("delay", "Delay", "make it shorter, or do without it"))
    lines = _grouped(facts, lambda one: one.state == limit.held_by and bool(one.route))
    for key, seconds in lines.ranked()[:3]:
        if seconds < SHARE * lines.total:
            continue
        yield found(
            cause,
            kind,
            f"{key.route} {_doing(key)}",
            share=seconds / lines.total,
            where=key.line or facts.limit.endpoint(key.route),
            remedy=remedy,
        )


def _of_calls(facts: Facts, limit: Limit) -> Iterator[Bottleneck]:
    by_line: dict[tuple[str, str], list[StatementStats]] = defaultdict(list)
    for one in facts.limit.calls:
        by_line[call_host(one.fingerprint), one.site].append(one)
    total = sum(one.total_s for one in facts.limit.calls) or 1e-9
    for (host, site), uses in by_line.items():
        share = sum(one.total_s for one in uses) / total
        if share >= SHARE:
            yield found(
                "external_service",
                "Service",
                f"{route_names(uses)} waits for {host}",
                share=share,
                where=site or facts.limit.endpoint(uses[0].route),
                evidence=(executions(*uses),),
                remedy=limit.remedy,
            )


def _grouped(facts: Facts, wanted: Callable[[SampleStats], bool]) -> Sums[SampleKey]:
    """Return sampled seconds by route, line, host and state."""
    sums: Sums[SampleKey] = Sums()
    for one in facts.limit.evidence.samples:
        if wanted(one):
            host = one.detail if one.state in ("http", "io") else ""
            sums[SampleKey(one.route, one.line, host, one.state)] += one.seconds
    return _with_lines(sums)


def _with_lines(sums: Sums[SampleKey]) -> Sums[SampleKey]:
    """Count what was seen without a line for the commonest line of the same route, host and state."""
    for key in [key for key in sums if not key.line]:
        lined = [one for one in sums if one.line and one._replace(line="") == key]
        if lined:
            sums[max(lined, key=lambda one: sums[one])] += sums.pop(key)
    return sums


def _doing(key: SampleKey) -> str:
    return f"{_DOES.get(key.place, 'waits')}{f' ({key.detail})' if key.detail else ''}"
