"""Wald's sequential probability ratio test for a share of arrivals whose verdicts are correlated.

A queue makes bad arrivals come in runs, so that a thousand of them say less than a thousand coin flips
would. The log-likelihood ratio is divided by the variance inflation: how much more the bad counts of
single seconds vary than binomial counts would (the design effect of cluster samples; Kish, Survey
Sampling, 1965). The test and its approximate bounds are those of Wald, Sequential Tests of Statistical
Hypotheses (1945).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, sqrt
from typing import Literal

from tenfold.measure.trial import Block


def share_limits(bad: float, offered: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided limits of a share, from ``bad`` in ``offered`` (Clopper and Pearson, 1934).

    Counts may be fractions: divide both by the variance inflation and the limits hold for correlated
    arrivals. Nothing offered gives ``(0, 1)``.

    Raises ValueError unless ``0 <= bad <= offered`` and ``0 < confidence < 1``.
    """
    from scipy.special import betaincinv  # 60 ms to import

    if not (0 <= bad <= offered and 0 < confidence < 1):
        raise ValueError(f"no share has {bad} of {offered} at a confidence of {confidence}")
    tail = (1 - confidence) / 2
    low = float(betaincinv(bad, offered - bad + 1, tail)) if bad > 0 else 0.0
    high = float(betaincinv(bad + 1, offered - bad, 1 - tail)) if bad < offered else 1.0
    return low, high


RateVerdict = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True, slots=True)
class ArrivalCount:
    """Arrivals of one interval of a trial."""

    offered: int
    bad: int


def skip_start(blocks: Sequence[Block], *, skip_s: float) -> tuple[Block, ...]:
    """Leave out the first ``skip_s`` seconds of blocks: a trial begins with an empty service."""
    return tuple(block for block in blocks if block.start_s - blocks[0].start_s >= skip_s - 1e-6)


def join_blocks(blocks: Sequence[Block], *, seconds: float) -> list[ArrivalCount]:
    """Join blocks to intervals of at least ``seconds``, and drop an incomplete one at the end."""
    counts, offered, bad, length = [], 0, 0, 0.0
    for block in blocks:
        offered, bad, length = offered + block.offered, bad + block.bad, length + block.seconds
        if length >= seconds - 1e-6:
            counts.append(ArrivalCount(offered, bad))
            offered, bad, length = 0, 0, 0.0
    return counts


def variance_inflation(counts: Sequence[ArrivalCount]) -> float:
    """Variance of the counts' shares over that of a binomial, never below 1.

    1 as long as there are fewer than two counts, or all arrivals were good, or all bad.
    """
    offered, bad = sum(count.offered for count in counts), sum(count.bad for count in counts)
    if len(counts) < 2 or not 0 < bad < offered:
        return 1.0
    share = bad / offered
    squares = sum((c.bad - c.offered * share) ** 2 / c.offered for c in counts if c.offered)
    return max(1.0, squares / (share * (1 - share)) / (len(counts) - 1))


def is_backlog_growing(blocks: Sequence[Block]) -> bool:
    """Return whether the number in flight rises from third to third of the blocks by more than its noise."""
    third = len(blocks) // 3
    if third < 2:
        return False
    means = [sum(b.in_flight for b in blocks[i * third : (i + 1) * third]) / third for i in range(3)]
    return all(after > before + 2 * sqrt(before + 1) for before, after in pairwise(means))


def uncompleted(blocks: Sequence[Block], *, achieved_share: float) -> int:
    """Arrivals left uncompleted by a service that falls behind; 0 when it keeps up.

    It falls behind when the number in flight rises steadily and less than ``achieved_share`` of the offered
    arrivals were completed: so an overload shows before any arrival is slow, where slow means seconds.
    """
    if not is_backlog_growing(blocks):
        return 0
    left = blocks[-1].in_flight - blocks[0].in_flight
    offered = sum(block.offered for block in blocks[1:])
    return left if left > (1 - achieved_share) * offered else 0


@dataclass(frozen=True, slots=True)
class SequentialTest:
    """A test whether the share of bad arrivals is ``pass_share`` or less, or ``fail_share`` or more.

    ``alpha`` bounds the chance to fail a service at ``pass_share``. ``beta`` bounds that to pass one at
    ``fail_share`` only while arrivals are nearly independent: before the first run of bad ones nothing shows
    that they come in runs, so that a pass is provisional and has to be confirmed. ``inflate=False`` is the
    textbook test: with correlated arrivals it holds neither bound.
    """

    pass_share: float
    fail_share: float
    alpha: float = 0.05
    beta: float = 0.05
    inflate: bool = True

    def log_likelihood_ratio(self, blocks: Sequence[Block]) -> float:
        """Log-likelihood ratio of failing against passing, divided by the variance inflation."""
        offered, bad = sum(block.offered for block in blocks), sum(block.bad for block in blocks)
        worse = log(self.fail_share / self.pass_share)
        better = log((1 - self.fail_share) / (1 - self.pass_share))
        inflated = variance_inflation(join_blocks(blocks, seconds=1.0)) if self.inflate else 1.0
        return (bad * worse + (offered - bad) * better) / inflated

    def decide(self, blocks: Sequence[Block]) -> RateVerdict:
        """Verdict on the rate from the blocks so far."""
        ratio = self.log_likelihood_ratio(blocks)
        if ratio >= log((1 - self.beta) / self.alpha):
            return "failed"
        if ratio <= log(self.beta / (1 - self.alpha)):
            return "passed"
        return "undecided"
