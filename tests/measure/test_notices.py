"""Notices and reasons: arrivals without a free user, failures with their log, what is slow from outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.capacity import constant, exponential
from benchmarks.support.virtual import Service

from tenfold.cli.report_text import report_lines
from tenfold.measure.load import histogram
from tenfold.measure.measurement import notices
from tenfold.measure.observer import StackObserver
from tenfold.measure.report.html import render
from tenfold.measure.report.wording import slowest
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Block, GeneratorHealth, Trial, TrialRequest
from tests.measure.support.report_examples import report
from tests.measure.support.virtual_measurement import RecordingGenerator, measure, observer

CALM = GeneratorHealth(cpu_share=0.3, late_share=0.0, lag_p99_ms=0.2)


def unsent(*, users: int, took_ms: float) -> Trial:
    raw = histogram.encode([took_ms] * 90)
    block = Block(0.0, 10.0, 100, 90, unsent=10)
    return Trial(TrialRequest(10, 10, "confirm", 1), 10, 0, (block,), CALM, raw=raw, users=users)


@pytest.mark.parametrize(
    ("users", "took_ms", "says"),
    [
        (10, 50.0, "raise --max-users above 10"),
        (5, 50.0, "log more of them in at the start (--users)"),
        (10, 900.0, "more would wait as well"),
        (5, 900.0, "more would wait as well"),
    ],
)
def test_more_users_are_advised_only_if_they_would_help(users: int, took_ms: float, says: str) -> None:
    trial = unsent(users=users, took_ms=took_ms)
    (found,) = notices([trial], [trial], settings=MeasureSettings(max_users=10))
    assert f"10 arrivals found all {users} users busy" in found
    assert found.endswith(says)
    assert ("--max-users" in found) == says.startswith("raise")


class Failing(RecordingGenerator):
    """A generator whose service answers 500 now and then."""

    def run(self, request: TrialRequest, on_block: object = None) -> Trial:
        return replace(super().run(request), errors={"GET / answered 500": 1})


def test_failures_are_shown_with_the_services_log(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StackObserver, "last_error", lambda self: "the log of app 1 says KeyError: 'a'")
    with observer(address) as inside:
        found = measure(Failing(Service(1, exponential(0.01)), seed=1), inside=inside)
        calm = measure(RecordingGenerator(Service(1, exponential(0.01)), seed=1), inside=inside)
    assert "the log of app 1 says KeyError: 'a'" in found.notices
    assert not any("the log of" in notice for notice in calm.notices)


def test_service_that_misses_its_objective_from_outside_names_its_slowest_endpoint() -> None:
    found = measure(RecordingGenerator(Service(1, constant(1.5)), seed=1))
    assert found.capacity is not None and found.capacity.outcome == "below"
    assert "(the slowest is GET /, " in found.capacity.reason
    assert "fix what stops it" not in found.capacity.reason


def test_report_without_a_bottleneck_names_the_slowest_endpoint() -> None:
    outside = report(inside=False, bottlenecks=(), limit=None)
    assert slowest(outside) == "The slowest endpoint is GET /api/orders: p95 190 ms, 120 requests"
    assert slowest(outside) in "\n".join(report_lines(outside))
    page = render(outside)
    assert slowest(outside) in page and "No limit was found" not in page
    assert slowest(report()) == ""
    few = replace(outside.endpoints[0], corrected_ms=None, mean_ms=1234.0, requests=9)
    assert "mean 1,234 ms, 9 requests" in slowest(replace(outside, endpoints=(few,)))
