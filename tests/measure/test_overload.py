"""Recovery is the first row of good blocks that lasts, not the first good block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.overload import (
    OVERLOAD_FACTOR,
    RECOVERY_FACTOR,
    StopWhenRecovered,
    overload_report,
    overload_requests,
    recovery_start,
)
from tenfold.measure.settings import Objective
from tenfold.measure.trial import Block, GeneratorHealth, Trial, TrialRequest

HEALTHY = GeneratorHealth(cpu_share=0.2, late_share=0.0, lag_p99_ms=0.1)


def blocks(pattern: str) -> list[Block]:
    """One block of half a second for each letter: g good, b bad, r refused, . without arrivals."""
    made = []
    for index, letter in enumerate(pattern):
        offered = 0 if letter == "." else 10
        good = 10 if letter == "g" else 0
        made.append(
            Block(
                start_s=index / 2,
                seconds=0.5,
                offered=offered,
                good=good,
                slow=10 if letter == "b" else 0,
                refused=10 if letter == "r" else 0,
            )
        )
    return made


@pytest.mark.parametrize(
    ("pattern", "since"),
    [
        ("", None),
        ("ggg", None),
        ("gggg", 0.0),
        ("bbgggg", 1.0),
        ("gggbgggg", 2.0),
        ("gbgbgbgb", None),
        ("bgg.g", 0.5),
        ("rrrrgggg", 2.0),
    ],
)
def test_recovery_starts_with_the_first_row_of_good_blocks_that_lasts(
    pattern: str, since: float | None
) -> None:
    assert recovery_start(blocks(pattern), bad_share=0.05) == since
    assert StopWhenRecovered(0.05).should_stop(blocks(pattern)) == (since is not None)


@given(st.text(alphabet="gb.r", max_size=40))
def test_no_bad_block_lies_within_the_recovered_row(pattern: str) -> None:
    since = recovery_start(blocks(pattern), bad_share=0.05)
    if since is not None:
        stretch = pattern[int(since * 2) : int(since * 2) + 4]
        assert set(stretch) <= {"g", "."} and len(stretch) == 4


def test_rates_are_multiples_of_the_capacity() -> None:
    overloaded, recovering = overload_requests(90.0, 110.0, seconds=10.0, objective=Objective(), seed=7)
    assert (overloaded.rate, overloaded.duration_s, overloaded.settle_s) == (OVERLOAD_FACTOR * 100, 10.0, 0.0)
    assert (
        recovering.rate == RECOVERY_FACTOR * 100
        and recovering.rule is not None
        and recovering.seed != overloaded.seed
    )


def test_refusals_are_not_goodput() -> None:
    request = TrialRequest(150.0, 2.0, "overload", 1)
    overloaded = Trial(request, 2.0, 0.0, tuple(blocks("grrg")), HEALTHY)
    recovering = Trial(request, 4.0, 0.0, tuple(blocks("bbbb")), HEALTHY)
    result = overload_report(overloaded, recovering, objective=Objective())
    assert result.goodput == 10.0 and result.kept == pytest.approx(0.1)
    assert result.refused_share == 0.5
    assert result.recovered_s is None and result.watched_s == 4.0
