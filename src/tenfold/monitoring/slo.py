"""Service level objectives and the alerts on how fast their error budget is spent. Pure.

An alert fires when the budget is spent ``factor`` times as fast as it may be, over a long window, and still
is in a short one, which ends the alert soon after the trouble (Google, The Site Reliability Workbook, 2018,
chapter 5, "multiwindow, multi-burn-rate alerts").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.errors import SettingsError

__all__ = ["PAIRS", "BurnRate", "Slo", "check_pairs"]


@dataclass(frozen=True, slots=True)
class BurnRate:
    """One pair of windows.

    Attributes:
        factor: how many times as fast as the budget lasts.
        long, short: windows, as Prometheus writes them.
        long_s: the long one in seconds.
        severity: a page for the person on call, or a ticket for working hours.
    """

    factor: float
    long: str
    short: str
    long_s: int
    severity: Literal["page", "ticket"]

    def detection_s(self, budget: float) -> float:
        """Seconds until it fires when everything fails from one moment on."""
        return self.factor * budget * self.long_s


PAIRS = (
    BurnRate(14.4, "1h", "5m", 3600, "page"),
    BurnRate(6.0, "6h", "30m", 6 * 3600, "page"),
    BurnRate(1.0, "3d", "6h", 3 * 86_400, "ticket"),
)


@dataclass(frozen=True, slots=True)
class Slo:
    """An objective: the share of requests that has to be good, and what a bad one is called."""

    name: Literal["errors", "slow"]
    target: float
    key: str  # of [monitoring]

    @property
    def budget(self) -> float:
        """The share of requests that may be bad."""
        return 1 - self.target


def check_pairs(slo: Slo) -> None:
    """Refuse an objective with a pair that cannot fire: even if everything is bad.

    Raises:
        SettingsError: it names the pair and the least target.
    """
    for pair in PAIRS:
        if pair.factor * slo.budget >= 1:
            least = 1 - 1 / pair.factor
            raise SettingsError(
                f"monitoring.{slo.key} is {slo.target:g}: {pair.factor:g} times {slo.budget:.0%} of all "
                f"requests is more than all, so that its alert over {pair.long} could never fire; "
                f"set it above {least:.3f}"
            )
