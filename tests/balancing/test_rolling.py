"""The order of a rolling replacement, and its failures."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.balancing import rolling
from tenfold.errors import ReplacementError, StackError

STEPS = ["leave", "is_drained", "stop", "start", "is_ready", "join"]


class FakeInstance:
    """Records its steps; fails at one of them, or takes several polls to drain or get ready."""

    name = "app 1"

    def __init__(self, *, fails: str = "", drain_after: int = 1, ready_after: int = 1) -> None:
        self.steps: list[str] = []
        self.fails = fails
        self.after = {"is_drained": drain_after, "is_ready": ready_after}

    def _do(self, step: str) -> bool:
        self.steps.append(step)
        if step == self.fails:
            raise StackError(f"no {step} today")
        return self.steps.count(step) >= self.after.get(step, 1)

    def leave(self) -> None:
        self._do("leave")

    def is_drained(self) -> bool:
        return self._do("is_drained")

    def stop(self) -> None:
        self._do("stop")

    def start(self) -> None:
        self._do("start")

    def is_ready(self) -> bool:
        return self._do("is_ready")

    def join(self) -> None:
        self._do("join")


def replace(instance: FakeInstance, **options: float) -> rolling.Replacement:
    """Replace with a clock that moves by a second at each poll."""
    seconds = itertools.count()
    return rolling.replace(instance, **options, clock=lambda: next(seconds), sleep=lambda _: None)


@given(st.integers(1, 8), st.integers(1, 8))
def test_each_step_waits_for_the_one_before(drain_after: int, ready_after: int) -> None:
    instance = FakeInstance(drain_after=drain_after, ready_after=ready_after)
    done = replace(instance)
    assert done.drained
    assert [step for step, _ in itertools.groupby(instance.steps)] == STEPS
    assert instance.steps.count("is_drained") == drain_after
    assert instance.steps.count("is_ready") == ready_after
    assert 0 < done.drain_s < done.away_s


@pytest.mark.guarantee("a new instance that does not come up gets no requests")
@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("leave", "app 1 was not replaced and serves as before: no leave today"),
        ("is_drained", "app 1 stays out of the balancer: no is_drained today"),
        ("stop", "app 1 stays out of the balancer: no stop today"),
        ("start", "app 1 stays out of the balancer: no start today"),
        ("is_ready", "app 1 stays out of the balancer: no is_ready today"),
        ("join", "app 1 is replaced and ready, but not let in: no join today"),
    ],
)
def test_failed_step_is_the_last_one(fails: str, said: str) -> None:
    instance = FakeInstance(fails=fails)
    with pytest.raises(ReplacementError) as caught:
        replace(instance)
    assert str(caught.value) == said
    assert instance.steps == STEPS[: STEPS.index(fails) + 1]


def test_instance_that_does_not_get_ready_does_not_join() -> None:
    instance = FakeInstance(ready_after=100)
    with pytest.raises(ReplacementError, match="stays out of the balancer: it was not ready within 7 s"):
        replace(instance, ready_timeout_s=7)
    assert "join" not in instance.steps


def test_endless_request_is_cut_off_after_the_drain_timeout() -> None:
    instance = FakeInstance(drain_after=100)
    done = replace(instance, drain_timeout_s=7)
    assert not done.drained
    assert 7 <= done.drain_s < 12
    assert instance.steps[-1] == "join"
