"""The order of a rolling replacement, and where it stops."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.balancing import rolling
from tenfold.errors import ReplacementError, StackError

STEPS = ["leave", "drained", "stop", "start", "ready", "join"]


class Target:
    """Writes down what it is asked for; fails at one step, or takes its time over two."""

    name = "app 1"

    def __init__(self, *, fails: str = "", drain_after: int = 1, ready_after: int = 1) -> None:
        self.asked: list[str] = []
        self.fails = fails
        self.after = {"drained": drain_after, "ready": ready_after}

    def _do(self, step: str) -> bool:
        self.asked.append(step)
        if step == self.fails:
            raise StackError(f"no {step} today")
        return self.asked.count(step) >= self.after.get(step, 1)

    def leave(self) -> None:
        self._do("leave")

    def drained(self) -> bool:
        return self._do("drained")

    def stop(self) -> None:
        self._do("stop")

    def start(self) -> None:
        self._do("start")

    def ready(self) -> bool:
        return self._do("ready")

    def join(self) -> None:
        self._do("join")


def replaced(target: Target, **options: float) -> rolling.Replacement:
    """With a clock that moves by a second a look."""
    seconds = itertools.count()
    return rolling.replace(target, **options, clock=lambda: next(seconds), sleep=lambda _: None)


@given(st.integers(1, 8), st.integers(1, 8))
def test_each_step_waits_for_the_one_before(drain_after: int, ready_after: int) -> None:
    target = Target(drain_after=drain_after, ready_after=ready_after)
    done = replaced(target)
    assert done.drained
    assert [step for step, _ in itertools.groupby(target.asked)] == STEPS
    assert target.asked.count("drained") == drain_after
    assert target.asked.count("ready") == ready_after
    assert 0 < done.drain_s < done.away_s


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("leave", "app 1 was not replaced and serves as before: no leave today"),
        ("drained", "app 1 stays out of the balancer: no drained today"),
        ("stop", "app 1 stays out of the balancer: no stop today"),
        ("start", "app 1 stays out of the balancer: no start today"),
        ("ready", "app 1 stays out of the balancer: no ready today"),
        ("join", "app 1 is replaced and ready, but not let in: no join today"),
    ],
)
def test_a_failed_step_is_the_last_one(fails: str, said: str) -> None:
    target = Target(fails=fails)
    with pytest.raises(ReplacementError) as caught:
        replaced(target)
    assert str(caught.value) == said
    assert target.asked == STEPS[: STEPS.index(fails) + 1]


def test_what_does_not_get_ready_is_not_let_in() -> None:
    target = Target(ready_after=100)
    with pytest.raises(ReplacementError, match="stays out of the balancer: it was not ready within 7 s"):
        replaced(target, ready_timeout_s=7)
    assert "join" not in target.asked


def test_a_request_without_an_end_is_not_waited_for_for_ever() -> None:
    target = Target(drain_after=100)
    done = replaced(target, drain_timeout_s=7)
    assert not done.drained
    assert 7 <= done.drain_s < 12
    assert target.asked[-1] == "join"


def test_the_first_failure_leaves_the_others_alone() -> None:
    targets = [Target(), Target(fails="start"), Target()]
    with pytest.raises(ReplacementError):
        rolling.replace_all(targets)
    assert [bool(target.asked) for target in targets] == [True, True, False]
    assert len(rolling.replace_all([Target(), Target()])) == 2
