"""Rate limits in simulated time: their rate is named, and no capacity is made of refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tenfold.cli.measure import FAILS, exit_code
from tenfold.measure.measurement import Measurement
from tenfold.measure.report.report import Report
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Block, Endpoint, GeneratorHealth, Trial, TrialRequest

CALM = GeneratorHealth(cpu_share=0.1, late_share=0.0, lag_p99_ms=0.1)
Limit = Callable[[float], bool]  # whether an arrival at this time is let through


def window(number: int, seconds: float) -> Limit:
    """So many in each window of so many seconds."""
    used: dict[int, int] = {}

    def admit(now: float) -> bool:
        used[int(now // seconds)] = used.get(int(now // seconds), 0) + 1
        return used[int(now // seconds)] <= number

    return admit


def bucket(rate: float, burst: float) -> Limit:
    """A token bucket."""
    state = [burst, 0.0]

    def admit(now: float) -> bool:
        state[0], state[1] = min(burst, state[0] + (now - state[1]) * rate), now
        if state[0] < 1:
            return False
        state[0] -= 1
        return True

    return admit


def open_gate(now: float) -> bool:
    return True


@dataclass
class VirtualTime:
    """A clock that only the service moves, in seconds."""

    now: float = 0.0


class LimitedService:
    """Runs trials in virtual time against a limit; above ``capacity`` arrivals per second all are slow."""

    def __init__(self, limit: Limit, clock: VirtualTime, *, capacity: float = 150.0) -> None:
        self._limit, self._clock, self._capacity = limit, clock, capacity

    def run(self, request: TrialRequest, on_block: Callable[[Block], None] | None = None) -> Trial:
        blocks: list[Block] = []
        due, began = 0.0, self._clock.now
        while len(blocks) * 0.5 + 1e-9 < request.duration_s:
            start = len(blocks) * 0.5
            first, due = int(due), due + request.rate / 2
            offered = int(due) - first
            at = [began + start + 0.5 * i / offered for i in range(offered)]
            good = sum(map(self._limit, at))
            slow = good if request.rate > self._capacity else 0
            blocks.append(Block(start, 0.5, offered, good - slow, slow=slow, refused=offered - good))
            self._clock.now = began + start + 0.5
            if request.rule is not None and request.rule.should_stop(blocks):
                break
        refused = sum(block.refused for block in blocks)
        offered = sum(block.offered for block in blocks)
        end = Endpoint(
            "GET /", offered, 0, refused, {"429": refused} if refused else {"200": offered}, "", ""
        )
        return Trial(request, len(blocks) * 0.5, 0.0, tuple(blocks), CALM, endpoints=(end,), requests=offered)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[[Limit], Report]:
    def run(limit: Limit) -> Report:
        clock = VirtualTime()
        monkeypatch.setattr("tenfold.measure.measurement.time.monotonic", lambda: clock.now)
        generator = LimitedService(limit, clock)
        settings = MeasureSettings(overload_s=0)
        return Measurement(settings, generator, service="it", target="http://127.0.0.1:1").run()

    return run


LIMITS = {
    "40 a minute": (lambda: window(40, 60.0), 40 / 60),
    "bucket of 40 a minute": (lambda: bucket(40 / 60, 40), 40 / 60),
    "10 a minute": (lambda: window(10, 60.0), 10 / 60),
    "3,000 a minute": (lambda: window(3000, 60.0), 50.0),
    "20 a second with a burst": (lambda: bucket(20, 200), 20.0),
    "40 a second": (lambda: window(40, 1.0), 40.0),
}


@pytest.mark.guarantee(
    "no capacity is made of refusals",
    pattern="measure",
    under="limits per second and per minute, with bursts",
)
@pytest.mark.parametrize("case", LIMITS)
def test_rate_limit_is_the_capacity_and_is_named(case: str, measure: Callable[[Limit], Report]) -> None:
    make, truth = LIMITS[case]
    report = measure(make())
    capacity = report.capacity
    assert capacity is not None and capacity.low is not None and capacity.high is not None
    assert capacity.low <= truth <= capacity.high, (case, capacity)
    assert capacity.high <= 4 * truth
    assert exit_code(report, 6 * truth) == FAILS
    assert [one.kind for one in report.bottlenecks] == ["Rate limit"]
    assert "(429)" in report.bottlenecks[0].title


@pytest.mark.control("no capacity is made of refusals", "a service without a limit")
def test_the_control_service_without_a_limit_has_its_own_capacity(measure: Callable[[Limit], Report]) -> None:
    report = measure(open_gate)
    assert report.capacity is not None and report.capacity.low is not None
    assert 100 < report.capacity.low <= 150 and not report.bottlenecks
