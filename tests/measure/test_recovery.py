from __future__ import annotations

import pytest

from tenfold.measure import recovery
from tenfold.measure.settings import Objective
from tenfold.measure.trial import Block, GeneratorHealth, Trial, TrialRequest

CALM = GeneratorHealth(cpu_share=0.1, late_share=0.0, lag_p99_ms=0.1)


def blocks(pattern: str) -> list[Block]:
    """One block for each letter: g good, b bad, . without arrivals."""
    return [
        Block(i / 2, 0.5, int(letter != "."), int(letter == "g"), slow=int(letter == "b"))
        for i, letter in enumerate(pattern)
    ]


@pytest.mark.parametrize(
    ("pattern", "idle", "answers"),
    [
        ("", False, False),
        ("....", False, False),
        ("..b", True, False),
        ("..gg", True, False),
        ("..ggg", True, True),
        (".bbgg.g", True, True),
        ("gggb", True, False),
        ("ggbg", True, False),
    ],
)
def test_wait_ends_when_idle_or_when_answers_are_good_in_a_row(
    pattern: str, idle: bool, answers: bool
) -> None:
    assert recovery.StopWhenIdle(answers=False).should_stop(blocks(pattern)) == idle
    assert recovery.StopWhenIdle(answers=True).should_stop(blocks(pattern)) == answers


@pytest.mark.parametrize(
    ("bad", "notes", "needed"),
    [(0, {}, False), (5, {}, False), (6, {}, True), (0, {recovery.UNANSWERED: 1}, True)],
)
def test_wait_is_needed_after_a_trial_that_missed_the_objective(
    bad: int, notes: dict[str, int], needed: bool
) -> None:
    block = Block(0.0, 0.5, 100, 100 - bad, slow=bad)
    trial = Trial(TrialRequest(200, 0.5, "ramp", 1), 0.5, 0.0, (block,), CALM, notes=notes)
    assert recovery.is_needed(trial, Objective()) == needed


def test_wait_after_a_warm_up_asks_only_for_an_idle_service() -> None:
    def rule(purpose: str) -> object:
        request = TrialRequest(5, 3, purpose, 1)  # type: ignore[arg-type]
        return recovery.wait_request(Trial(request, 3, 0, (), CALM), seconds=5).rule

    assert rule("warm-up") == recovery.StopWhenIdle(answers=False)
    assert rule("ramp") == recovery.StopWhenIdle(answers=True)
    assert recovery.limit_s(Objective(slow_ms=5000)) == 50


def test_one_long_task_is_enough_and_the_wait_is_long_enough_for_it() -> None:
    request = TrialRequest(20, 3, "ramp", 1)
    rule = recovery.wait_request(Trial(request, 3, 0, (), CALM, task_s=10.0), seconds=40).rule
    assert rule is not None and rule.should_stop(blocks("..g")) and not rule.should_stop(blocks("..b"))
    assert recovery.limit_s(Objective(), task_s=10.0) == 40
