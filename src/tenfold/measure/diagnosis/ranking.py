"""Ranks what the rules found: by the share of the slow requests' time, causes before what follows from them.

Everything is suspected, but for an index that was created and measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tenfold.measure.diagnosis.bottleneck import Analysis, Bottleneck
from tenfold.measure.diagnosis.explain import Plan
from tenfold.measure.diagnosis.resources import Resources
from tenfold.measure.diagnosis.rules import CAUSE, IN_USE, RULES, SMALL, Case, shown
from tenfold.measure.probe.evidence import Evidence
from tenfold.measure.settings import Objective

MOST = 12  # bottlenecks named
_SEVERITY = {"critical": 0, "high": 1, "medium": 2, "low": 3}


def rank(
    evidence: Evidence,
    resources: Resources | None,
    *,
    plans: Sequence[Plan],
    objective: Objective | None,
    limits: Mapping[str, float],
) -> Analysis:
    """Every rule's findings, by the share of the slow requests' time, then by severity."""
    slow_ms = (objective or Objective()).slow_ms
    case = Case(evidence, resources, {plan.fingerprint: plan for plan in plans}, slow_ms, limits)
    found = [one for rule in RULES for one in rule(case) if one.share is None or one.share >= SMALL]
    later = _consequences(case, found)
    found.sort(key=lambda one: (one.kind in later, -_weight(one), _SEVERITY[one.severity]))
    return Analysis(tuple(_with_causes(found[:MOST], later)), tuple(_not_measured(case)))


def _weight(one: Bottleneck) -> float:
    # What has no share is not comparable: it comes after what explains time, and before what explains little.
    return 0.1 if one.share is None else one.share


def _consequences(case: Case, found: Sequence[Bottleneck]) -> set[str]:
    """The kinds that follow from what the database is asked, when much of the time goes there."""
    if sum(one.share or 0 for one in found if one.kind == "Database") < CAUSE:
        return set()
    return {"Threads", "CPU"} | ({"Connection Pool"} if case.used_share >= IN_USE else set())


def _with_causes(found: Sequence[Bottleneck], later: set[str]) -> Iterator[Bottleneck]:
    """Say of each consequence what it follows from, and that this has to be measured without it first."""
    causes = tuple(rank for rank, one in enumerate(found, 1) if one.kind == "Database")[:3]
    ranks = " and ".join(filter(None, (", ".join(map(str, causes[:-1])), "".join(map(str, causes[-1:])))))
    for one in found:
        if one.kind in later and causes:
            what = "enlarge it" if one.kind == "Connection Pool" else "add more"
            remedy = f"follows from {ranks}: measure again before you {what}"
            yield replace(one, follows_from=causes, remedy=remedy)
        else:
            yield one


def _not_measured(case: Case) -> Iterator[str]:
    """What nobody looked at, or what could not be seen: never healthy."""
    seen = case.evidence.seen
    if not seen.get("requests"):
        yield "requests: not seen (no probe was connected, or no request came)"
    if not seen.get("sqlalchemy"):
        yield "statements and pools: not seen (no SQLAlchemy engine was used in a probed process)"
    elif not seen.get("pool"):
        yield "connection pool: not seen (another pool than SQLAlchemy's QueuePool)"
    if not seen.get("event loop"):
        yield "event loop: not seen"
    if not seen.get("threads"):
        yield "threads for sync endpoints: not seen"
    if case.evidence.dropped:
        yield f"{case.evidence.dropped:,} requests: dropped by the probes for want of room"
    yield from (
        f"plan of {shown(plan.fingerprint)}: {plan.reason}" for plan in case.plans.values() if plan.reason
    )
    if seen.get("sqlalchemy") and not case.plans:
        yield "plans: the database was not asked"
    if case.resources is None or case.resources.machine is None:
        yield "processors, memory and disk: not sampled"
    else:
        yield from case.resources.not_measured
