"""Requests that have not finished are seen while they hang: deadlocks, full pools, a stuck event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tenfold.measure.diagnosis.bottleneck import Analysis, Bottleneck
from tenfold.measure.diagnosis.detector import BottleneckDetector
from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.aggregate import Aggregate
from tenfold.measure.probe.collector import Collector
from tenfold.measure.probe.evidence import Evidence, RouteStats
from tenfold.measure.probe.recorder import Recorder
from tenfold.measure.probe.sample_totals import TextTable
from tests.measure.conftest import Service, mark
from tests.support.waiting import eventually


@pytest.fixture
def collector(service: Service) -> Iterator[Collector]:
    with Collector(service.probe_address) as collector:
        eventually(lambda: collector.workers == 2)
        collector.reset()
        yield collector


@contextmanager
def hanging(service: Service, path: str, requests: int = 4) -> Iterator[None]:
    """Send requests at once, and wait for their responses only at the end."""
    threads = [threading.Thread(target=service.get, args=(path,)) for _ in range(requests)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


def seen(collector: Collector, condition: Callable[[Evidence], object]) -> Evidence:
    eventually(lambda: condition(collector.evidence()))
    return collector.evidence()


def hangs(found: Evidence, requests: int) -> bool:
    return found.unfinished >= requests and found.stalled_s > 3 and found.routes[0].unfinished_s > 3


def rank(evidence: Evidence) -> Analysis:
    return BottleneckDetector().rank(evidence, None)


def find(analysis: Analysis, title: str) -> Bottleneck:
    return next(one for one in analysis if title in one.title)


@pytest.mark.guarantee(
    "requests that hang are reported with their route, their age and the line they stand on",
    pattern="measure",
    under="a deadlock during the trial",
)
@pytest.mark.parametrize(("path", "line"), [("/stuck", "stuck"), ("/stuck-async", "stuck async")])
def test_hanging_requests_are_reported_while_they_hang(
    service: Service, collector: Collector, path: str, line: str
) -> None:
    with hanging(service, path):
        evidence = seen(collector, lambda found: hangs(found, 4) and mark(line) in dict(found.unfinished_at))
        (route,) = evidence.routes
        assert (route.route, route.requests, route.unfinished) == (f"GET {path}", 0, 4)
        assert route.unfinished_s >= 1
        assert route.slow_s >= 4  # their time so far
        analysis = rank(evidence)
        first = analysis[0]
        assert (first.kind, first.title, first.where) == (
            "Requests",
            f"GET {path} does not finish",
            mark(line),
        )
        assert first.severity == "critical"
        assert "without a response at the end of a trial: 4," in first.evidence[0]
        assert not any(line.startswith("requests: not seen") for line in analysis.not_measured)
    assert seen(collector, lambda found: found.requests == 4).unfinished == 0


@pytest.mark.control(
    "requests that hang are reported with their route, their age and the line they stand on",
    "only finished requests are sent",
)
def test_the_control_hanging_requests_are_missing_among_finished_ones(
    service: Service, collector: Collector
) -> None:
    with hanging(service, "/stuck"):
        evidence = seen(collector, lambda found: found.unfinished)
        assert evidence.requests == 0


def test_checkouts_that_wait_for_ever_are_counted(service: Service, collector: Collector) -> None:
    with hanging(service, "/nested", 6):
        evidence = seen(
            collector, lambda found: sum(pool.waiting for pool in found.pools) >= 2 and hangs(found, 1)
        )
        pool = next(pool for pool in evidence.pools if pool.site == mark("small"))
        assert pool.wait_count == 0  # none of the waits has ended
        analysis = rank(evidence)
        assert analysis.limit is not None and analysis.limit.resource == "pool"
        deadlock = find(analysis, "GET /nested waits for a second connection")
        assert (deadlock.cause, deadlock.where) == ("deadlock", mark("nested"))
        assert deadlock.remedy.startswith("use one connection")


def test_event_loop_that_stands_still_is_reported_with_its_line(
    service: Service, collector: Collector
) -> None:
    eventually(lambda: service.get("/quick") or collector.evidence().loop)
    with hanging(service, "/frozen", 1):
        evidence = seen(collector, lambda found: found.loop is not None and found.loop.stuck_s > 3.5)
        assert evidence.loop is not None
        assert mark("frozen") in dict(evidence.loop.blockers)
        late = find(rank(evidence), "on the event loop")
        assert (late.kind, late.where) == ("Event loop", mark("frozen"))


def test_streaming_response_is_not_taken_for_a_hanging_request(
    service: Service, collector: Collector
) -> None:
    with hanging(service, "/stream", 2):
        pass
    assert seen(collector, lambda found: found.requests == 2).routes[0].total_s > 4
    assert collector.evidence().unfinished == 0


def test_backlog_that_is_worked_off_is_not_taken_for_a_deadlock(
    service: Service, collector: Collector
) -> None:
    """A hundred requests of 0.1 s wait for four connections: each finishes, the last ones late."""
    with hanging(service, "/hold", 100):
        evidence = seen(collector, lambda found: found.unfinished)
        assert not [one for one in rank(evidence) if one.kind == "Requests"]


@pytest.mark.parametrize(
    ("changes", "stalled_s", "reported"),
    [
        ({"unfinished_s": 3.0}, 2.0, True),
        ({"unfinished_s": 2.9}, 2.0, False),
        ({"unfinished_s": 9.9}, 1.9, False),  # others finish: a backlog, or one slow request
        ({"unfinished_s": 10.0}, 0.0, True),
        ({"unfinished_s": 10.0, "longest_s": 4.0}, 9.0, False),  # it is a slow route
        ({"unfinished_s": 10.0, "unfinished": 0}, 9.0, False),
    ],
)
def test_only_requests_that_wait_far_longer_than_others_are_called_hanging(
    changes: dict[str, float], stalled_s: float, reported: bool
) -> None:
    values = {"requests": 90, "total_s": 1.0, "slow_s": 0.5, "slow_wait_s": 0.0, "unfinished": 1}
    route = RouteStats(route="GET /", endpoint="app.py:1", **(values | changes))  # type: ignore[arg-type]
    evidence = Evidence(seconds=9, workers=1, seen={}, routes=(route,), stalled_s=stalled_s)
    assert bool(list(rank(evidence))) == reported


def test_routes_that_wait_for_each_other_are_one_bottleneck() -> None:
    def route(name: str, unfinished: int) -> RouteStats:
        return RouteStats(
            route=name, endpoint="app.py:1", requests=9, total_s=1.0, slow_s=0.5, slow_wait_s=0.0,
            unfinished=unfinished, unfinished_s=20.0,
        )  # fmt: skip

    routes = (route("GET /a", 3), route("GET /b", 39), route("GET /c", 0))
    (found,) = rank(Evidence(seconds=9, workers=1, seen={}, routes=routes, stalled_s=9.0))
    assert found.title == "GET /b and 1 more route do not finish"
    assert found.evidence[0].startswith("without a response at the end of a trial: 42,")


def unfinished(*started: float, wait_s: float = 0.0) -> probe_protocol.Batch:
    record = probe_protocol.UnfinishedRecord(1, len(started), 9.0, list(started), 0, wait_s)
    return probe_protocol.Batch(0.25, 0, True, unfinished=[record])


def test_time_of_a_hanging_request_is_shared_between_trials() -> None:
    texts = TextTable()
    texts.routes[1] = ("GET /", "app.py:1")
    first, second = Aggregate(since=0.0), Aggregate(since=10.0)
    first.add(1, unfinished(4.0), texts, now=10.0)
    second.add(1, unfinished(4.0), texts, now=15.0)
    (route,) = Aggregate.merge([(first, 10.0), (second, 15.0)]).evidence(0.0).routes
    assert (route.unfinished, route.total_s) == (1, pytest.approx(6 + 5))


def test_later_batch_replaces_the_unfinished_requests_of_its_worker() -> None:
    texts, aggregate = TextTable(), Aggregate(since=0.0)
    texts.routes[1] = ("GET /", "app.py:1")
    aggregate.add(1, unfinished(1.0, 2.0), texts, now=4.0)
    aggregate.add(2, unfinished(1.0), texts, now=4.0)
    aggregate.add(1, probe_protocol.Batch(0.25, 0, True), texts, now=4.2)
    assert aggregate.evidence(5.0).unfinished == 1


def test_finished_request_is_forgotten(tmp_path: object) -> None:
    from pathlib import Path

    recorder = Recorder(Path(str(tmp_path)))
    request = probe_protocol.RequestRecord(0.0)
    recorder.begin_request(request, {"method": "GET", "path": "/"}, "")
    assert recorder.drain(0.25).unfinished[0].count == 1
    recorder.record_request(request, {"method": "GET", "path": "/"}, "")
    assert recorder.drain(0.25).unfinished == [] and not recorder._running
