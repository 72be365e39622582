"""Overload and recovery: goodput above the capacity, and the time until the objective holds again. Pure.

Two trials: one at ``OVERLOAD_FACTOR`` times the capacity, then one at ``RECOVERY_FACTOR`` times the capacity
that ends once the objective has held for ``HOLDS_S`` in a row. The second begins when the first one ends,
with the queue that it left behind: waiting for an idle service would hide that queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.measure.report.report import OverloadReport
from tenfold.measure.settings import Objective
from tenfold.measure.trial import Block, Trial, TrialRequest

OVERLOAD_FACTOR = 1.5
RECOVERY_FACTOR = 0.7
HOLDS_S = 2.0
RECOVERY_S = 20.0


@dataclass(frozen=True, slots=True)
class StopWhenRecovered:
    """A stop rule: ends a trial once the objective has held for ``HOLDS_S`` in a row."""

    bad_share: float

    def should_stop(self, blocks: Sequence[Block]) -> bool:
        """Return whether the service has recovered."""
        return recovery_start(blocks, bad_share=self.bad_share) is not None


def recovery_start(blocks: Sequence[Block], *, bad_share: float) -> float | None:
    """Start, in seconds, of the first ``HOLDS_S`` in a row in which all blocks meet the objective, or None.

    A block without arrivals does not break the row.
    """
    start: float | None = None
    lasted = 0.0
    for block in blocks:
        if block.offered and block.bad > bad_share * block.offered:
            start, lasted = None, 0.0
            continue
        start = block.start_s if start is None else start
        lasted += block.seconds
        if lasted >= HOLDS_S - 1e-9:
            return start
    return None


def overload_requests(
    low: float, high: float, *, seconds: float, objective: Objective, seed: int
) -> tuple[TrialRequest, TrialRequest]:
    """The overload trial and the recovery trial for a capacity of ``[low, high]`` arrivals per second."""
    middle = (low + high) / 2
    overloaded = TrialRequest(OVERLOAD_FACTOR * middle, seconds, "overload", seed, settle_s=0.0)
    rule = StopWhenRecovered(objective.bad_share)
    recovering = TrialRequest(RECOVERY_FACTOR * middle, RECOVERY_S, "recovery", seed + 1, rule=rule)
    return overloaded, recovering


def overload_report(overloaded: Trial, recovering: Trial, *, objective: Objective) -> OverloadReport:
    """Report of the two trials."""
    refused = sum(block.refused for block in overloaded.blocks)
    seconds = overloaded.seconds or 1.0
    capacity = overloaded.request.rate / OVERLOAD_FACTOR
    return OverloadReport(
        rate=overloaded.request.rate,
        seconds=overloaded.seconds,
        goodput=overloaded.good / seconds,
        kept=overloaded.good / seconds / capacity,
        refused_share=refused / overloaded.offered if overloaded.offered else 0.0,
        recovered_s=recovery_start(recovering.blocks, bad_share=objective.bad_share),
        watched_s=recovering.seconds,
    )
