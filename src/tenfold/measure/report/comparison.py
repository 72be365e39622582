"""Comparison of two capacities: the interval of their ratio."""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.measure.report.report import Report


@dataclass(frozen=True, slots=True)
class Comparison:
    """A capacity compared with a baseline's.

    ``low`` and ``high`` bound the ratio now / before. Both capacities are 95 % intervals, so this
    is at least a 90 % interval (Bonferroni). None where one of the four ends is not known.
    """

    baseline: str
    low: float | None
    high: float | None
    sentence: str


def compare(now: Report, before: Report, *, name: str) -> Comparison:
    """Compare the capacity of ``now`` with that of the baseline ``before`` called ``name``."""
    if now.objective != before.objective:
        return Comparison(
            name, None, None, f"not comparable with {name}: it was measured against another objective"
        )
    ends, ends0 = _ends(now), _ends(before)
    if ends is None or ends0 is None:
        return Comparison(
            name, None, None, f"not comparable with {name}: one of the two reports has no capacity interval"
        )
    (low, high), (low0, high0) = ends, ends0
    ratio_low, ratio_high = low / high0, high / low0
    if ratio_low > 1:
        relation = "higher than"
    elif ratio_high < 1:
        relation = "lower than"
    else:
        relation = "no difference shown from"
    sentence = f"{relation} {name}: {ratio_low:.2f} – {ratio_high:.2f} × its {low0:.4g} – {high0:.4g} /s"
    return Comparison(name, ratio_low, ratio_high, sentence)


def _ends(report: Report) -> tuple[float, float] | None:
    capacity = report.capacity
    if capacity is None or not capacity.low or not capacity.high:
        return None
    scale = capacity.requests_per_arrival
    return capacity.low * scale, capacity.high * scale
