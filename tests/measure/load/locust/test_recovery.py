"""A trial never starts on what the trial before left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenfold.measure import recovery
from tenfold.measure.load import histogram
from tenfold.measure.load.generator import Generator
from tenfold.measure.measurement import Measurement, Progress
from tenfold.measure.report.report import Report
from tenfold.measure.search import capacity
from tenfold.measure.settings import MeasureSettings, Objective
from tenfold.measure.trial import TrialRequest

Make = Callable[..., Generator]
Ask = Callable[..., TrialRequest]

ONE = """
    class Visitor(FastHttpUser):
        @task
        def one(self):
            self.client.get("{path}")
    """


def overload(generator: Generator, request_for: Ask, service: Any) -> None:
    """Leave a backlog: 40 arrivals that the service holds for two seconds after the trial."""
    service.stall(2.5)
    trial = generator.run(request_for(rate=80.0, duration_s=0.5, settle_s=0.0))
    assert trial.good == 0 and trial.notes[recovery.UNANSWERED] > 20


@pytest.mark.guarantee(
    "a service is tried one at a time on an idle service only", pattern="measure", under="a backlog"
)
def test_wait_begins_when_the_backlog_is_gone(generator: Make, request_for: Ask, service: Any) -> None:
    one = generator(ONE.format(path="/sleep/0.05"), slow_ms=150.0)
    one.start_users(20)
    overload(one, request_for, service)
    waiting = recovery.wait_request(
        one.run(request_for(rate=1.0, duration_s=0.5, purpose="alone")), seconds=15.0
    )
    waited = one.run(waiting)
    assert recovery.is_answering(waited.blocks)
    assert waited.bad == 0, "it sent before the backlog was gone"
    alone = one.run(request_for(rate=20.0, duration_s=1.0, purpose="alone"))
    assert alone.good == alone.offered > 5 and max(b.in_flight for b in alone.blocks) <= 1


@pytest.mark.control("a service is tried one at a time on an idle service only", "an open loop at once")
def test_the_control_open_loop_finds_the_backlog(generator: Make, request_for: Ask, service: Any) -> None:
    one = generator(ONE.format(path="/sleep/0.05"), slow_ms=150.0)
    one.start_users(20)
    overload(one, request_for, service)
    assert one.run(request_for(rate=5.0, duration_s=1.0)).bad > 0


def test_arrivals_of_a_closed_loop_of_one_never_overlap(
    generator: Make, request_for: Ask, service: Any
) -> None:
    """One request takes longer than the pace: the next one waits for it, and none is late."""
    one = generator(ONE.format(path="/sleep/0.3"), slow_ms=1000.0)
    one.start_users(10)
    alone = one.run(request_for(rate=50.0, duration_s=2.0, purpose="alone"))
    assert 4 <= alone.offered <= 7 and alone.good == alone.offered
    assert histogram.percentile(alone.corrected, 100) < 900


def measure(one: Generator, service: Any, **options: Any) -> tuple[Report, list[Progress]]:
    shown: list[Progress] = []
    settings = MeasureSettings(objective=Objective(slow_ms=200.0), budget_s=19, overload_s=0)
    one.start_users(10)
    measurement = Measurement(
        settings, one, service="it", target=service.url, progress=shown.append, **options
    )
    return measurement.run(), shown


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "RAMP_START", 40.0)
    monkeypatch.setattr(capacity, "WARM_UP_S", 1.0)
    monkeypatch.setattr(recovery, "LIMIT_S", 3.0)
    monkeypatch.setattr(recovery, "LIMIT_SLOW", 1.0)


TITLE = "the service does not recover from overload"


@pytest.mark.usefixtures("impatient")
@pytest.mark.guarantee(
    "no trial counts against a service that has not recovered from the one before",
    pattern="measure",
    under="a service that locks up under load",
)
def test_service_that_locks_up_ends_the_search_with_a_finding(generator: Make, service: Any) -> None:
    service.locks_at = 6
    report, shown = measure(generator(ONE.format(path="/sleep/0.1"), max_users=200), service)
    assert [one.title for one in report.bottlenecks] == [TITLE]
    assert "still unanswered" in " ".join(report.bottlenecks[0].evidence)
    assert any(one.phase == "wait" for one in shown), "the wait is not shown"
    failed = [trial for trial in report.trials if trial.verdict == "failed"]
    assert len(failed) == 1, "a trial was run on a service that did not answer"
    assert report.capacity is not None and "stopped recovering" in report.capacity.reason


@pytest.mark.usefixtures("impatient")
@pytest.mark.control(
    "no trial counts against a service that has not recovered from the one before", "a service that recovers"
)
def test_search_continues_on_restarted_instances(generator: Make, service: Any) -> None:
    service.locks_at = 6
    one = generator(ONE.format(path="/sleep/0.1"), max_users=200)
    restarts: list[int] = []

    def restart() -> None:
        service.restart()
        restarts.append(one.restart_users(10))

    report, shown = measure(one, service, restart=restart)
    assert restarts and all(users == 10 for users in restarts)
    assert [found.title for found in report.bottlenecks] == [TITLE]
    rates = [trial.rate for trial in report.trials]
    first = next(i for i, trial in enumerate(report.trials) if trial.verdict == "failed")
    assert len(rates) > first + 1, "the search ended"
    assert "restart" in {progress.phase for progress in shown}
