"""The sequential test, with independent and with correlated arrivals."""

from __future__ import annotations

from math import log

import pytest
from benchmarks.capacity import exponential
from benchmarks.support.virtual import Service, VirtualGenerator

from tenfold.measure.search.sequential import (
    ArrivalCount,
    SequentialTest,
    is_backlog_growing,
    join_blocks,
    skip_start,
    uncompleted,
    variance_inflation,
)
from tenfold.measure.trial import Block, TrialRequest

TEST = SequentialTest(0.03, 0.08)


def blocks(*bad: int, offered: int = 50, in_flight: list[int] | None = None) -> list[Block]:
    flying = in_flight or [0] * len(bad)
    return [
        Block(0.5 * i, 0.5, offered, offered - count, slow=count, in_flight=flying[i])
        for i, count in enumerate(bad)
    ]


@pytest.mark.parametrize(
    ("bad", "decision"),
    [
        ([0] * 10, "passed"),
        ([1] * 10, "passed"),
        ([4, 5] * 10, "failed"),
        ([50] * 4, "failed"),
        ([0], "undecided"),
        ([0] * 9 + [30], "undecided"),  # one run of bad arrivals decides nothing, whatever its size
    ],
)
def test_decisions(bad: list[int], decision: str) -> None:
    assert TEST.decide(blocks(*bad)) == decision


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([], 1.0),
        ([ArrivalCount(100, 5)], 1.0),
        ([ArrivalCount(100, 0)] * 4, 1.0),
        ([ArrivalCount(100, 100)] * 4, 1.0),
        ([ArrivalCount(100, 5)] * 4, 1.0),
        ([ArrivalCount(100, 0), ArrivalCount(100, 100)] * 2, 400 / 3),
        ([ArrivalCount(0, 0), ArrivalCount(100, 0), ArrivalCount(100, 100)], 100.0),
    ],
)
def test_inflation_is_one_for_coin_flips_and_the_run_size_for_runs(
    counts: list[ArrivalCount], expected: float
) -> None:
    assert variance_inflation(counts) == pytest.approx(expected)


def test_join_blocks_drops_an_incomplete_interval() -> None:
    assert join_blocks(blocks(1, 2, 3, 4, 5), seconds=1.0) == [ArrivalCount(100, 3), ArrivalCount(100, 7)]
    assert skip_start(blocks(1, 2, 3), skip_s=1.0) == tuple(blocks(1, 2, 3)[2:])


@pytest.mark.parametrize(
    ("in_flight", "grows"),
    [
        ([1, 2, 1, 2, 1, 2], False),
        ([10, 11, 12, 13, 14, 15], False),
        ([0, 10, 30, 40, 60, 70], True),
        ([0, 100], False),
        ([70, 60, 40, 30, 10, 0], False),
    ],
)
def test_growing_backlog_is_told_from_noise(in_flight: list[int], grows: bool) -> None:
    assert is_backlog_growing(blocks(*[0] * len(in_flight), in_flight=in_flight)) is grows


def test_uncompleted_arrivals_show_before_any_is_slow() -> None:
    falling_behind = blocks(*[0] * 6, in_flight=[0, 10, 30, 40, 60, 70])
    assert uncompleted(falling_behind, achieved_share=0.98) == 70
    assert uncompleted(falling_behind, achieved_share=0.6) == 0
    assert uncompleted(blocks(*[0] * 6), achieved_share=0.98) == 0


def failures(*, inflate: bool, services: int = 200) -> int:
    """Number of M/M/1 queues with exactly 3 % of slow arrivals that the test fails."""
    test, total, failed = SequentialTest(0.03, 0.08, inflate=inflate), 115.0, 0
    for seed in range(services):
        generator = VirtualGenerator(Service(1, exponential(1 / total)), seed=seed)
        trial = generator.run(TrialRequest(total + log(0.03) / 0.2, 45.0, "search", seed))
        seen = skip_start(trial.blocks, skip_s=5.0)
        decisions = (test.decide(seen[:count]) for count in range(8, len(seen) + 1))
        failed += next((d for d in decisions if d != "undecided"), "undecided") == "failed"
    return failed


def test_correlated_arrivals_keep_the_error_bound_only_with_inflation() -> None:
    bound = 0.05 * 200 + 2.6 * (200 * 0.05 * 0.95) ** 0.5
    assert failures(inflate=True) <= bound
    assert failures(inflate=False) > bound
