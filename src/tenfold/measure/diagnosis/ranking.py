"""Ranking of the rules' findings: by the share of the slow requests' time, causes before their consequences.

Every bottleneck is suspected, except a missing index that was created and measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from tenfold.measure.diagnosis.bottleneck import Analysis, Bottleneck
from tenfold.measure.diagnosis.explain import Plan
from tenfold.measure.diagnosis.optional_steps import OptionalSteps
from tenfold.measure.diagnosis.resources import Resources
from tenfold.measure.diagnosis.rules import (
    CAUSE,
    CHURN_TITLE,
    IN_USE,
    RULES,
    SMALL,
    Observations,
    Rule,
    abbreviate,
)
from tenfold.measure.probe.evidence import Evidence
from tenfold.measure.settings import Objective

MOST = 12  # bottlenecks reported …
LEAST = 6  # … of which so many by their share of the time, however many resources are full
_SEVERITY = {"critical": 0, "high": 1, "medium": 2, "low": 3}


def rank(
    evidence: Evidence,
    resources: Resources | None,
    *,
    plans: Sequence[Plan],
    objective: Objective | None,
    limits: Mapping[str, float],
) -> Analysis:
    """Apply every rule and rank what they find. A rule that fails is listed in ``not_measured``."""
    slow_ms = (objective or Objective()).slow_ms
    observed = Observations(evidence, resources, {plan.fingerprint: plan for plan in plans}, slow_ms, limits)
    steps = OptionalSteps()
    found = [one for one in _apply_rules(observed, steps) if one.share is None or one.share >= SMALL]
    later = _consequences(observed, found)
    found.sort(key=lambda one: (_is_later(one, later), -_weight(one), _SEVERITY[one.severity]))
    return Analysis(
        tuple(_with_causes(_most_important(found), later)), (*_not_measured(observed), *steps.failures)
    )


def _apply_rules(observed: Observations, steps: OptionalSteps) -> Iterator[Bottleneck]:
    for rule in RULES:
        yield from steps.run(rule.__name__.replace("_", " "), partial(_apply, rule, observed), otherwise=())


def _apply(rule: Rule, observed: Observations) -> tuple[Bottleneck, ...]:
    return tuple(rule(observed))


def _most_important(found: Sequence[Bottleneck]) -> list[Bottleneck]:
    """Return the first ones. A full resource has no share and may be the limit itself: it always stays."""
    shares = [one for one in found if one.share is not None]
    left = shares[: max(MOST - (len(found) - len(shares)), LEAST)]
    return [one for one in found if one.share is None or one in left]


def _weight(one: Bottleneck) -> float:
    # Without a share it is not comparable: it ranks between what explains much time and what explains little.
    # Requests that never finish are worse than slow ones.
    if one.kind == "Requests":
        return 1.0
    return 0.1 if one.share is None else one.share


def _consequences(observed: Observations, found: Sequence[Bottleneck]) -> set[str]:
    """Return the kinds that follow from the statements, when these take much of the time."""
    if sum(one.share or 0 for one in found if one.kind == "Database") < CAUSE:
        return set()
    return {"Threads", "CPU"} | ({"Connection Pool"} if observed.used_share >= IN_USE else set())


def _is_later(one: Bottleneck, later: set[str]) -> bool:
    # New connections do not follow from slow statements, although both are about the pool.
    return one.kind in later and one.title != CHURN_TITLE


def _with_causes(found: Sequence[Bottleneck], later: set[str]) -> Iterator[Bottleneck]:
    """Name the causes of each consequence, and advise to fix and measure those first."""
    causes = tuple(rank for rank, one in enumerate(found, 1) if one.kind == "Database")[:3]
    ranks = " and ".join(filter(None, (", ".join(map(str, causes[:-1])), "".join(map(str, causes[-1:])))))
    for one in found:
        if _is_later(one, later) and causes:
            what = "enlarge it" if one.kind == "Connection Pool" else "add more"
            remedy = f"follows from {ranks}: fix that and measure again before you {what}"
            yield replace(one, follows_from=causes, remedy=remedy)
        else:
            yield one


def _why_no_pool(observed: Observations) -> str:
    kinds = observed.evidence.pool_kinds
    if kinds:
        return f"the engine uses {' and '.join(kinds)}, which has no queue to observe"
    if not observed.evidence.statements:
        return "no statement ran in these trials"
    return "no connection was checked out in these trials"


def _not_measured(observed: Observations) -> Iterator[str]:
    """Yield what was not observed; it must not be taken for healthy."""
    seen = observed.evidence.seen
    if not seen.get("requests"):
        yield "requests: not seen (no probe was connected, or no request arrived)"
    if not seen.get("statements"):
        yield "statements and pools: not seen (none of SQLAlchemy, Django, asyncpg and psycopg 3)"
    elif not seen.get("pool"):
        yield f"connection pool: not seen ({_why_no_pool(observed)})"
    if not seen.get("event loop"):
        yield "event loop: not seen"
    if not seen.get("threads"):
        yield "threads for sync endpoints: not seen"
    if observed.evidence.dropped:
        yield f"{observed.evidence.dropped:,} requests: dropped, the probes' buffers were full"
    yield from (
        f"plan of {abbreviate(plan.fingerprint)}: {plan.reason}"
        for plan in observed.plans.values()
        if plan.reason
    )
    unproven = {one.create: one for plan in observed.plans.values() for one in plan.missing if one.unproven}
    yield from (
        f"proof of an index on {one.table} ({one.column}): {one.unproven}" for one in unproven.values()
    )
    if seen.get("statements") and not observed.plans:
        yield "query plans: EXPLAIN was not run"
    if observed.resources is None or observed.resources.machine is None:
        yield "CPU, memory and disk: not sampled"
    else:
        yield from observed.resources.not_measured
