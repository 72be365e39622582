"""What stays of a service that is asked for too much, and how fast it comes back. Pure.

Two trials: one at ``FACTOR`` times the capacity, then one at ``AFTER`` times the capacity that ends once the
objective has held for ``CALM_S`` in a row. The second begins the moment the first one ends, with whatever
queue that left behind: coming back to an idle service would hide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.measure.report.report import OverloadReport
from tenfold.measure.settings import Objective
from tenfold.measure.trial import Block, Trial, TrialRequest

FACTOR = 1.5
AFTER = 0.7
CALM_S = 2.0
WATCH_S = 20.0


@dataclass(frozen=True, slots=True)
class Calm:
    """A stop rule: enough once the objective has held for ``CALM_S`` in a row."""

    bad_share: float

    def should_stop(self, blocks: Sequence[Block]) -> bool:
        """Whether the newest blocks are calm for long enough."""
        return calm_since(blocks, bad_share=self.bad_share) is not None


def calm_since(blocks: Sequence[Block], *, bad_share: float) -> float | None:
    """Start, in seconds, of the first run of blocks of ``CALM_S`` that all hold the objective, or None.

    A block in which nothing was due neither breaks a run nor makes one.
    """
    start: float | None = None
    lasted = 0.0
    for block in blocks:
        if block.offered and block.bad > bad_share * block.offered:
            start, lasted = None, 0.0
            continue
        start = block.start_s if start is None else start
        lasted += block.seconds
        if lasted >= CALM_S - 1e-9:
            return start
    return None


def requests(
    low: float, high: float, *, seconds: float, objective: Objective, seed: int
) -> tuple[TrialRequest, TrialRequest]:
    """The two trials for a capacity of ``[low, high]`` arrivals per second."""
    middle = (low + high) / 2
    push = TrialRequest(FACTOR * middle, seconds, "overload", seed, settle_s=0.0)
    watch = TrialRequest(AFTER * middle, WATCH_S, "recovery", seed + 1, rule=Calm(objective.bad_share))
    return push, watch


def judge(push: Trial, watch: Trial, *, objective: Objective) -> OverloadReport:
    """Put the two trials into numbers."""
    refused = sum(block.refused for block in push.blocks)
    seconds = push.seconds or 1.0
    capacity = push.request.rate / FACTOR
    return OverloadReport(
        rate=push.request.rate,
        seconds=push.seconds,
        goodput=push.good / seconds,
        kept=push.good / seconds / capacity,
        refused_share=refused / push.offered if push.offered else 0.0,
        recovered_s=calm_since(watch.blocks, bad_share=objective.bad_share),
        watched_s=watch.seconds,
    )
