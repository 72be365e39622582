"""Rate limits: what a service lets through when it refuses the rest (429, 503). Pure.

A limit with a memory longer than a trial (40 a minute) lets whole trials pass and refuses whole trials after
them: no capacity follows from those. It shows when single requests on an idle service are refused; then its
rate is what was let through between the first refusal and the last. A limit with a short memory shows in
trials above it, which all let the same rate through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tenfold.measure.report.report import BottleneckReport
from tenfold.measure.search.capacity import Capacity
from tenfold.measure.trial import Block, Trial, TrialRequest

REFUSED_SHARE = 0.8  # of single requests: they are refused by a limit, and not for the load
LEAST_PROBES = 5
GOOD_SHARE = 0.95  # of what was let through
WATCH_S = 75.0  # longer than a limit per minute remembers
ENOUGH = 10  # requests let through are enough to tell the rate
SAME_RATE = 0.15  # trials above a limit let through the same rate, within this share
CONTRADICTS = 0.8  # of the capacity's lower end: a limit below this is not what the trials passed at


@dataclass(frozen=True, slots=True)
class SentTrial:
    """A trial and its start, in seconds of the measurement."""

    started_s: float
    trial: Trial


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Arrivals per second that are let through: between ``low`` and ``high``."""

    low: float
    high: float
    statuses: str  # "429"
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StopWhenRateIsKnown:
    """A stop rule: ends the watch when refusals came again after ``ENOUGH`` requests were let through."""

    def should_stop(self, blocks: Sequence[Block]) -> bool:
        """Return whether the rate of the limit is known."""
        return bool(blocks[-1].refused) and sum(_admitted(block) for block in blocks) >= ENOUGH


def is_limited(probes: Sequence[Block]) -> bool:
    """Return whether single requests on an idle service were refused nearly always."""
    offered, refused = sum(block.offered for block in probes), sum(block.refused for block in probes)
    return offered >= LEAST_PROBES and refused >= REFUSED_SHARE * offered


def is_only_refused(blocks: Sequence[Block]) -> bool:
    """Return whether refusals are what a trial failed by: what was let through was answered well."""
    good, admitted = sum(block.good for block in blocks), sum(_admitted(block) for block in blocks)
    return good > 0 and good >= GOOD_SHARE * admitted


def watch_request(probed: Trial, *, seconds: float) -> TrialRequest:
    """The request for watching a limit longer than it remembers."""
    request = probed.request
    return replace(request, duration_s=min(seconds, WATCH_S), rule=StopWhenRateIsKnown(), settle_s=0.0)


def remembering_limit(sent: Sequence[SentTrial]) -> RateLimit | None:
    """The limit that refuses single requests on an idle service, from all that was sent.

    None when everything was refused.
    """
    blocks = [(one.started_s + block.start_s, block) for one in sent for block in one.trial.blocks]
    refusing = [(at, at + block.seconds) for at, block in blocks if block.refused]
    first, last = refusing[0][0], refusing[-1][1]
    between = sum(_admitted(block) for at, block in blocks if first < at < last)
    everything = sum(_admitted(block) for _, block in blocks)
    if not everything:
        return None
    rate = between / (last - first)
    probes = [one.trial for one in sent if one.trial.request.purpose == "wait"]
    refused, offered = sum(_refused(trial) for trial in probes), sum(trial.offered for trial in probes)
    return RateLimit(
        # The windows of a limit need not begin with the measurement; none let through is less than one.
        low=0.8 * max(rate, 0.5 / (last - first)),
        high=max(1.2 * rate, everything / (last - blocks[0][0])),
        statuses=_statuses(sent),
        evidence=(
            f"{between} arrivals were let through in {last - first:.0f} s, whatever rate was sent",
            f"{refused} of {offered} single requests on the idle service were refused",
        ),
    )


def steady_limit(sent: Sequence[SentTrial]) -> RateLimit | None:
    """The limit above which several trials let through the same rate, with good answers; None without one."""
    rates = [rate for one in sent if (rate := _rate_while_refusing(one.trial)) is not None]
    if len(rates) < 2 or max(rates) > (1 + SAME_RATE) * min(rates) or not min(rates):
        return None
    mean = sum(rates) / len(rates)
    return RateLimit(
        low=min(rates) * (1 - SAME_RATE),
        high=max(rates) * (1 + SAME_RATE),
        statuses=_statuses(sent),
        evidence=(f"{len(rates)} trials above it were let through at {mean:.3g} arrivals/s each",),
    )


def limited_capacity(
    capacity: Capacity, sent: Sequence[SentTrial], *, limited: bool
) -> tuple[Capacity, RateLimit | None]:
    """The capacity under the limit that was seen, and that limit: no capacity is made of refusals.

    ``limited``: single requests on an idle service were refused.
    """
    limit = remembering_limit(sent) if limited else None
    if limit is None:
        limit = steady_limit(sent)
        if limit is None or capacity.low is None or limit.high >= CONTRADICTS * capacity.low:
            return capacity, limit
    return (
        replace(
            capacity,
            outcome="found",
            stopped_by="refusals",
            low=limit.low,
            high=limit.high,
            clean_rate=None,
            reason=f"the service refuses more ({limit.statuses}): a rate limit, not what it can do",
        ),
        limit,
    )


def finding(limit: RateLimit, *, requests_per_arrival: float) -> BottleneckReport:
    """The finding about a limit, in requests per second."""
    low, high = limit.low * requests_per_arrival, limit.high * requests_per_arrival
    return BottleneckReport(
        cause="rate_limit",
        kind="Rate limit",
        title="the service refuses what exceeds about "
        f"{_two_digits(low)} – {_two_digits(high)} requests/s ({limit.statuses})",
        severity="high",
        proof="proven",
        evidence=limit.evidence,
        where=None,
        remedy=(
            "if one client's limit counts all users of this measurement together, lift it for them; "
            "otherwise this limit is the capacity"
        ),
    )


def _rate_while_refusing(trial: Trial) -> float | None:
    """Arrivals per second let through between the first and the last refusal, when all were answered well."""
    refusing = [i for i, block in enumerate(trial.blocks) if block.refused]
    blocks = trial.blocks[refusing[0] + 1 : refusing[-1] + 1] if refusing else ()
    seconds, admitted = sum(block.seconds for block in blocks), sum(_admitted(block) for block in blocks)
    good = sum(block.good for block in blocks)
    if seconds < 1.0 or trial.request.purpose == "wait" or good < GOOD_SHARE * admitted:
        return None
    return admitted / seconds


def _admitted(block: Block) -> int:
    return block.offered - block.refused - block.unsent


def _refused(trial: Trial) -> int:
    return sum(block.refused for block in trial.blocks)


def _statuses(sent: Sequence[SentTrial]) -> str:
    found = {status for one in sent for endpoint in one.trial.endpoints for status in endpoint.statuses}
    return ", ".join(sorted(found & {"429", "503"})) or "429, 503"


def _two_digits(rate: float) -> str:
    """Write a rate with the two digits that are known of it, and without an exponent."""
    return f"{float(f'{rate:.2g}'):,.12g}"
