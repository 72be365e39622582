"""Rounds in which the variants of a benchmark take turns, and the ratios within each round.

Other load on the machine hits the variants of a round alike, so that their ratio says more than two times.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from benchmarks.support.results import Result

Variant = TypeVar("Variant")


def turns(variants: Sequence[Variant], rounds: int) -> Iterator[Variant]:
    """Yield each variant once a round; the order rotates, so that none is always the first."""
    for number in range(rounds):
        first = number % len(variants)
        yield from (*variants[first:], *variants[:first])


def median_result(name: str, values: Sequence[float], **fields: Any) -> Result:
    """Return the median over the rounds, with the quartiles if there are two rounds or more.

    ``fields``: others of the result, such as its goal.
    """
    if len(values) > 1:
        fields["low"], _, fields["high"] = statistics.quantiles(values, n=4, method="inclusive")
    return Result(name, statistics.median(values), **fields)


def ratio_result(name: str, values: Sequence[float], base: Sequence[float], **fields: Any) -> Result:
    """Return the median of the rounds' ratios of ``values`` to ``base``, as :func:`median_result` does."""
    return median_result(name, [value / other for value, other in zip(values, base, strict=True)], **fields)
