"""Every check there is, one line each, in the order of the patterns.

Here each check gets what it needs beyond its own folder's settings.
"""

from __future__ import annotations

from pathlib import Path

from tenfold.measure import check as measure
from tenfold.settings import Settings
from tenfold.verify.runner import Check

BASELINES = Path(".tenfold", "baselines")  # in the folder of tenfold.toml


def _baselines(settings: Settings) -> Path:
    return settings.root / BASELINES


CHECKS: tuple[Check, ...] = (
    Check(
        measure.BASELINE,
        "measure",
        lambda stack, settings: measure.baseline_established(
            stack, settings.measure, folder=_baselines(settings)
        ),
    ),
    Check(
        measure.PERCENTILES,
        "measure",
        lambda stack, settings: measure.percentiles_known(
            stack, settings.measure, folder=_baselines(settings)
        ),
    ),
    Check(
        measure.SLOW_QUERIES,
        "measure",
        lambda stack, settings: measure.slow_queries(stack, settings.measure, root=settings.root),
        needs=frozenset({"app", "database"}),
    ),
)
