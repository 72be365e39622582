"""Causes among statements: loops, missing indexes, rows that are not shown, connections, commits. Pure.

Shares are of the time in statements, until a caller replaces them by shares of what it looks at.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tenfold.measure.diagnosis.bottleneck import Bottleneck, found, with_share
from tenfold.measure.diagnosis.facts import Facts, SampleKey, Window
from tenfold.measure.postgresql.explain import IndexProof, MissingIndex
from tenfold.measure.probe.evidence import ROUND_TRIPS, StatementStats

SHARE = 0.2  # of the limit's use: what uses less is merely present …
CHEAP_SHARE = 0.1  # … unless it is repaired in minutes: an N+1, a missing index
MANY_ROWS = 500  # of one statement in a request …
ROW_BYTES = 20  # … of which the response shows few: less than this for each row that was read
CONNECTS = 0.05  # per request
CONNECT_TIME = 0.1  # of the time in statements
COMMITS = 1.5  # per request
MANY_POOLS = 500  # from one line; the probes count no more than 1,000
BUSY = 0.3  # of all cores: a database that uses more slows its own statements down
SLOW = 0.1  # of the objective: a quicker statement is work, not a fault
STATEMENT_SHOWN = 120
STATEMENT_KINDS = ("statement", "rows to objects")  # of library work

_COLUMNS = re.compile(r"^SELECT .{40,}? FROM ")
_AGGREGATE = re.compile(r"^SELECT\s+(?:COALESCE\s*\(\s*)?(?:COUNT|SUM|MIN|MAX|AVG|EXISTS)\s*\(")


def find_statement_causes(facts: Facts) -> Iterator[Bottleneck]:
    """Yield what takes the time in statements."""
    window = facts.limit
    total = statement_seconds(window)
    wasteful = [
        *(n_plus_one(window, uses, seconds_of(uses) / total) for uses in loops(window)),
        *missing_indexes(facts),
        *over_fetching(window),
        *(commits(window) if commits_per_request(window) >= COMMITS else ()),
    ]
    told = [one for one in wasteful if is_large(one)]
    yield from connects(window)
    yield from told
    yield from slow_statements(facts, {one.where for one in told})


def statement_seconds(window: Window) -> float:
    """Return the time in statements of all requests, in seconds; never 0."""
    return seconds_of(window.statements) or 1e-9


def seconds_of(uses: Sequence[StatementStats]) -> float:
    """Return the time in some statements, in seconds."""
    return sum(use.total_s for use in uses)


def loops(window: Window) -> list[list[StatementStats]]:
    """Return the statements that loops repeat, by loop, the costliest first.

    A line is one cause in all routes that run it, and the lines of the same routes are one loop.
    """
    lines: dict[str, list[StatementStats]] = defaultdict(list)
    for use in window.statements:
        if use.repeating_requests and use.fingerprint not in ROUND_TRIPS:
            lines[use.site or use.route].append(use)
    by_routes: dict[frozenset[str], list[StatementStats]] = defaultdict(list)
    for uses in lines.values():
        by_routes[frozenset(use.route for use in uses)].extend(uses)
    return [sorted(uses, key=lambda use: -use.total_s) for uses in by_routes.values()]


def keys_of(uses: Sequence[StatementStats], seconds: Mapping[SampleKey, float]) -> list[SampleKey]:
    """Return the samples of some statements: on their lines, or without a line in their routes."""
    sites, routes = {use.site for use in uses} - {""}, {use.route for use in uses}
    return [
        key
        for key in seconds
        if key.line in sites or (not key.line and key.route in routes and key.detail in STATEMENT_KINDS)
    ]


def n_plus_one(window: Window, uses: Sequence[StatementStats], share: float) -> Bottleneck:
    """Return the cause of statements that one loop repeats, the costliest first."""
    use = uses[0]
    others = [one for one in uses[1:] if one.site != use.site or one.route == use.route]
    sites = list(dict.fromkeys(one.site for one in others if one.site and one.site != use.site))
    more = f", at {', '.join(sites[:2])}{' …' if sites[2:] else ''}" if sites else ""
    return found(
        "n_plus_one",
        "Database",
        f"N+1 in {route_names(uses)}",
        share=share,
        where=use.site or window.endpoint(use.route),
        evidence=(
            f"one statement runs {use.repetitions_mean:.0f} times a request, at most "
            f"{use.executions_max}, in {use.repeating_requests} of {use.requests} requests",
            *((f"{'as do' if others[1:] else 'as does'} {len(others)} more{more}",) if others else ()),
            executions(*uses),
            abbreviate(use.fingerprint),
        ),
        remedy=repetition_remedy(use.fingerprint),
    )


def missing_indexes(facts: Facts) -> Iterator[Bottleneck]:
    """Yield look-ups and sorts by a column without an index; one for each index, for all its statements."""
    by_index: dict[str, tuple[MissingIndex, list[StatementStats]]] = {}
    for use in facts.limit.statements:
        plan = facts.plans.get(use.fingerprint)
        for missing in plan.missing if plan is not None else ():
            by_index.setdefault(missing.create, (missing, []))[1].append(use)
    for missing, uses in by_index.values():
        proof = missing.proof
        if proof is not None and not proof.helps:
            continue
        needed = "the first ones in order" if missing.ordered else f"{max(missing.rows, 1):,.0f}"
        evidence = [f"reads {missing.table_rows:,} rows to find {needed}", executions(*uses)]
        share = seconds_of(uses) / statement_seconds(facts.limit)
        if proof is not None:
            evidence.append(
                f"a look-up takes {proof.after_ms:.2f} ms with the index, {proof.before_ms:.1f} ms without"
            )
            share *= _saved(facts.limit, proof, uses)
        yield found(
            "missing_index",
            "Database",
            f"missing index on {missing.table} ({missing.column})",
            share=share,
            where=uses[0].site or facts.limit.endpoint(uses[0].route),
            evidence=tuple(evidence),
            remedy=missing.create,
            proven=proof is not None,
        )


def _saved(window: Window, proof: IndexProof, uses: Sequence[StatementStats]) -> float:
    """Return the share of the statements' time that an index saves.

    It is the planner's estimate for the whole statement, and no more than the look-up's measured saving,
    except where the database is so busy that each look-up is slower than the proof found it.
    """
    saved = 1 - proof.cost_after / proof.cost_before if proof.cost_before else 1.0
    mean_ms = seconds_of(uses) * 1000 / max(sum(use.executions for use in uses), 1)
    if window.cores_of("database") < BUSY * window.cores and mean_ms > 0:
        saved = min(saved, (proof.before_ms - proof.after_ms) / mean_ms)
    return min(max(saved, 0.0), 1.0)


def _explains(window: Window, missing: MissingIndex, uses: Sequence[StatementStats]) -> bool:
    """Return whether a missing index explains most of what its statements take."""
    proof = missing.proof
    return proof is None or (proof.helps and _saved(window, proof, uses) >= SHARE)


def large_results(window: Window) -> Iterator[StatementStats]:
    """Yield statements that return many rows, of which the response can show only few."""
    for use in window.statements:
        rows = use.rows / max(use.requests, 1)
        reads = use.fingerprint.upper().startswith(("SELECT", "WITH"))
        if reads and rows >= MANY_ROWS and window.response_bytes(use.route) < ROW_BYTES * rows:
            yield use


def over_fetching(window: Window) -> Iterator[Bottleneck]:
    """Yield the causes of large results."""
    for use in large_results(window):
        yield fetched(window, use, use.total_s / statement_seconds(window))


def fetched(window: Window, use: StatementStats, share: float) -> Bottleneck:
    """Return the cause of one large result."""
    return found(
        "over_fetching",
        "Database",
        f"{use.route} reads {use.rows / max(use.requests, 1):,.0f} rows",
        share=share,
        where=use.site or window.endpoint(use.route),
        evidence=(
            f"its response has {window.response_bytes(use.route):,.0f} bytes: most of the rows are not shown",
            executions(use),
            abbreviate(use.fingerprint),
        ),
        remedy="read only what is shown: LIMIT, WHERE, or count and sum in the database",
    )


def connects(window: Window) -> Iterator[Bottleneck]:
    """Yield connections opened within requests: no pool, an engine for each, a pool that overflows."""
    uses = sorted(
        (use for use in window.statements if use.fingerprint == "CONNECT"), key=lambda use: -use.total_s
    )
    opened, share = sum(use.executions for use in uses), seconds_of(uses) / statement_seconds(window)
    kept = sum(pool.size * min(pool.pools, window.evidence.workers) for pool in window.evidence.pools)
    if opened - kept < CONNECTS * window.requests or share < CONNECT_TIME:
        return
    where, remedy = _connect_remedy(window, uses)
    yield found(
        "connect",
        "Connection Pool",
        "many requests open a new connection",
        share=share,
        where=where or None,
        evidence=(f"{opened:,} opened in {window.requests:,} requests", executions(*uses)),
        remedy=remedy,
    )


def _connect_remedy(window: Window, uses: Sequence[StatementStats]) -> tuple[str, str]:
    evidence = window.evidence
    site = next((use.site for use in uses if use.site), "") or window.endpoint(uses[0].route) or ""
    engines = min(evidence.workers + CONNECTS * evidence.requests, MANY_POOLS)
    many = [pool for pool in evidence.pools if pool.pools > engines]
    if many:
        where = max(many, key=lambda pool: pool.pools).site
        return where or site, "create the engine once, when the module is imported, and not in each request"
    if not evidence.pools and "NullPool" in evidence.pool_kinds:
        return site, "keep connections open: create the engine without poolclass=NullPool"
    if not evidence.pools:
        return site, "keep connections open in a pool (create_engine has one; Django: CONN_MAX_AGE)"
    pool = max(evidence.pools, key=lambda one: one.checkouts)
    if pool.max_overflow == 0:
        return site, "find why connections are closed early: pool_recycle, invalidated or detached ones"
    return (
        pool.site or site,
        "raise pool_size to the number of connections used at once, and lower max_overflow",
    )


def commits_per_request(window: Window) -> float:
    """Return the mean number of commits in a request."""
    return sum(use.executions for use in window.statements if use.fingerprint == "COMMIT") / window.requests


def commits(window: Window) -> Iterator[Bottleneck]:
    """Yield the cause of commits."""
    uses = sorted(
        (use for use in window.statements if use.fingerprint == "COMMIT"), key=lambda use: -use.total_s
    )
    if uses:
        yield found(
            "commit",
            "Database",
            f"{commits_per_request(window):.1f} commits a request",
            share=seconds_of(uses) / statement_seconds(window),
            where=uses[0].site or window.endpoint(uses[0].route),
            evidence=(executions(*uses),),
            remedy="one transaction for each request, and writes in batches",
        )


def slow_statements(facts: Facts, told: set[str | None]) -> Iterator[Bottleneck]:
    """Yield statements that take much of the time, and that no line in ``told`` explains."""
    window = facts.limit
    by_line: dict[tuple[str, str], list[StatementStats]] = defaultdict(list)
    for use in window.statements:
        if use.fingerprint not in ROUND_TRIPS and not use.repeating_requests:
            by_line[use.fingerprint, use.site].append(use)
    for (statement, site), uses in by_line.items():
        share, plan = seconds_of(uses) / statement_seconds(window), facts.plans.get(statement)
        mean_ms = seconds_of(uses) * 1000 / max(sum(use.executions for use in uses), 1)
        if share < SHARE or site in told or mean_ms < SLOW * facts.slow_ms:
            continue
        if plan is not None and any(_explains(window, one, uses) for one in plan.missing):
            continue
        yield found(
            "slow_statement",
            "Database",
            f"slow statement in {route_names(uses)}",
            share=share,
            where=site or window.endpoint(uses[0].route),
            evidence=(
                executions(*uses),
                abbreviate(statement),
                *(plan.lines[:6] if plan is not None else ()),
            ),
            remedy="read its plan, fetch fewer rows, or cache the result",
        )


def is_large(one: Bottleneck) -> bool:
    """Return whether a cause uses enough of the limit to be named."""
    least = CHEAP_SHARE if one.cause in ("n_plus_one", "missing_index") else SHARE
    return (one.share or 0.0) >= least


def scaled(causes: Iterator[Bottleneck], factor: float) -> Iterator[Bottleneck]:
    """Yield the causes whose share of something else, ``factor`` of it, is large enough."""
    yield from filter(is_large, (with_share(one, (one.share or 0.0) * factor) for one in causes))


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


def route_names(uses: Sequence[StatementStats]) -> str:
    """Return the route that spends the most time there, and the number of the others."""
    first, *others = dict.fromkeys(use.route for use in sorted(uses, key=lambda use: -use.total_s))
    return f"{first} and {len(others)} more route{'s' if others[1:] else ''}" if others else first


def executions(*uses: StatementStats) -> str:
    """Return how often statements ran, and how long each took."""
    count = sum(use.executions for use in uses)
    return f"{count:,} executions, {seconds_of(uses) * 1000 / max(count, 1):.1f} ms each"


def abbreviate(statement: str) -> str:
    """Shorten a statement to one line of a report: tables matter more than a long list of columns."""
    statement = _COLUMNS.sub("SELECT … FROM ", statement)
    return statement if len(statement) <= STATEMENT_SHOWN else f"{statement[: STATEMENT_SHOWN - 1]}…"
