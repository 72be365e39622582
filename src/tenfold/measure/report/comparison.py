"""Two capacities beside each other: what can be said of the ratio, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.measure.report.report import Report


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a capacity stands to a baseline's.

    ``low`` and ``high`` bound the ratio now / before. Both intervals hold at 95 %, so their quotient's ends
    hold at 90 % at the least (Bonferroni). None where one of the four ends is not known.
    """

    baseline: str
    low: float | None
    high: float | None
    sentence: str


def compare(now: Report, before: Report, *, name: str) -> Comparison:
    """Compare the capacity of ``now`` with that of the baseline ``before`` called ``name``."""
    if now.objective != before.objective:
        return Comparison(name, None, None, f"not comparable with {name}: its objective was another one")
    ends, ends0 = _ends(now), _ends(before)
    if ends is None or ends0 is None:
        return Comparison(name, None, None, f"not comparable with {name}: one of the two has no interval")
    (low, high), (low0, high0) = ends, ends0
    ratio_low, ratio_high = low / high0, high / low0
    if ratio_low > 1:
        verdict = "more than"
    elif ratio_high < 1:
        verdict = "less than"
    else:
        verdict = "no difference shown from"
    sentence = f"{verdict} {name}: {ratio_low:.2f} – {ratio_high:.2f} × its {low0:.4g} – {high0:.4g} /s"
    return Comparison(name, ratio_low, ratio_high, sentence)


def _ends(report: Report) -> tuple[float, float] | None:
    capacity = report.capacity
    if capacity is None or not capacity.low or not capacity.high:
        return None
    scale = capacity.requests_per_arrival
    return capacity.low * scale, capacity.high * scale
