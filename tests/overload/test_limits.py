"""Limits find the knee of a service of known capacity, follow it, and do not disturb a service below it.

The service is virtual (support/virtual.py); admission control and limits are the real ones.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Callable
from functools import partial

import pytest

from tenfold.overload.admission import AdmissionController, FairQueue, QueuedRequest
from tenfold.overload.limits import AIMDLimit, FixedLimit, GradientLimit, Limit
from tests.overload.support.virtual import Arrival, Outcome, VirtualService, poisson

Draw = Callable[[random.Random], float]


def steady(seconds: float) -> Draw:
    return lambda rng: seconds


def noisy(seconds: float) -> Draw:
    """Exponential: a standard deviation as large as the mean."""
    return lambda rng: rng.expovariate(1 / seconds)


def goodput(outcomes: list[Outcome], *, slow_s: float, begin: float = 0.0, end: float = 1e9) -> float:
    """Return the answers within the objective, per second of due time."""
    some = [outcome for outcome in outcomes if begin <= outcome.arrival.due_s < end]
    good = sum(outcome.latency_s <= slow_s for outcome in some)
    return good / (some[-1].arrival.due_s - begin)


def refused(outcomes: list[Outcome], *, begin: float = 0.0, end: float = 1e9) -> float:
    some = [outcome for outcome in outcomes if begin <= outcome.arrival.due_s < end]
    return sum(outcome.ended_s is None for outcome in some) / len(some)


def mean_limit(service: VirtualService, *, begin: float) -> float:
    return statistics.mean(limit for moment, limit in service.limits if moment >= begin)


SERVICES = [
    pytest.param(1, 0.005, id="a loop of 5 ms"),
    pytest.param(15, 0.02, id="15 connections of 20 ms"),
    pytest.param(40, 0.05, id="40 threads of 50 ms"),
]


@pytest.mark.guarantee(
    "at three times the capacity, goodput stays above nine tenths of the capacity",
    pattern="overload",
    under="lasting overload of loops, threads and connections, in virtual time; on granian by "
    "`python -m benchmarks.overload`",
)
@pytest.mark.parametrize(("servers", "work_s"), SERVICES)
@pytest.mark.parametrize("draw", [steady, noisy])
def test_goodput_at_three_times_the_capacity_stays_near_the_capacity(
    servers: int, work_s: float, draw: Callable[[float], Draw]
) -> None:
    service = VirtualService(GradientLimit(), servers)
    capacity = servers / work_s
    outcomes = service.run(poisson(3 * capacity, 20, work=draw(work_s)))
    assert goodput(outcomes, slow_s=0.1 + 4 * work_s, begin=5) >= 0.9 * capacity
    assert servers <= mean_limit(service, begin=5) <= 3 * servers + 5


@pytest.mark.control("at three times the capacity, goodput stays above nine tenths of the capacity")
@pytest.mark.parametrize(("servers", "work_s"), SERVICES)
def test_the_control_without_a_limit_goodput_collapses(servers: int, work_s: float) -> None:
    service = VirtualService(FixedLimit(10**9), servers)
    outcomes = service.run(poisson(3 * servers / work_s, 20, work=steady(work_s)))
    assert goodput(outcomes, slow_s=0.1 + 4 * work_s, begin=5) < 0.1 * servers / work_s


@pytest.mark.guarantee(
    "a service that keeps up refuses no request after its first second",
    pattern="overload",
    under="bursts, loads up to 0.7 of the capacity",
)
@pytest.mark.parametrize(("servers", "work_s"), SERVICES)
@pytest.mark.parametrize("load", [0.1, 0.4, 0.7])
def test_service_below_its_capacity_refuses_nothing(servers: int, work_s: float, load: float) -> None:
    service = VirtualService(GradientLimit(), servers)
    outcomes = service.run(poisson(load * servers / work_s, 20, work=steady(work_s)))
    assert refused(outcomes, begin=1) == 0


@pytest.mark.guarantee("a service that keeps up refuses no request after its first second")
def test_short_bursts_wait_instead_of_being_refused() -> None:
    """Fifteen at once, at a third of the capacity of a loop."""
    arrivals = [Arrival(0.225 * group, 0.005) for group in range(100) for _ in range(15)]
    outcomes = VirtualService(GradientLimit(), 1).run(iter(arrivals))
    assert refused(outcomes) == 0


def test_noisy_latencies_do_not_collapse_the_limit() -> None:
    service = VirtualService(GradientLimit(), 40)
    outcomes = service.run(poisson(560, 30, work=noisy(0.05)))
    assert refused(outcomes, begin=3) < 0.001
    assert min(limit for moment, limit in service.limits if moment > 5) >= 20


@pytest.mark.guarantee(
    "the limit follows changes of the service",
    pattern="overload",
    under="half the capacity; slower without a queue; another mix of requests",
)
def test_limit_follows_a_capacity_that_halves_and_recovers() -> None:
    """Half of the servers' speed: more would only queue."""
    service = VirtualService(GradientLimit(), 1, pace=lambda now: 2.0 if 10 <= now < 20 else 1.0)
    outcomes = service.run(poisson(1.5 / 0.005, 30, work=steady(0.005)))
    assert goodput(outcomes, slow_s=0.2, begin=12, end=20) >= 0.9 * 100
    assert goodput(outcomes, slow_s=0.2, begin=22, end=30) >= 0.9 * 200


@pytest.mark.control("a service that keeps up refuses no request after its first second")
def test_limit_recovers_after_an_overload() -> None:
    service = VirtualService(GradientLimit(), 40)
    outcomes = service.run(poisson(lambda now: 2400 if now < 10 else 480, 20, work=noisy(0.05)))
    assert refused(outcomes, begin=5, end=10) > 0.5
    assert refused(outcomes, begin=11) < 0.001


def slower_without_a_queue(limit: GradientLimit) -> float:
    """Return the share refused after requests become three times as slow, without a queue."""
    service = VirtualService(limit, 400, pace=lambda now: 3.0 if now > 10 else 1.0)
    return refused(service.run(poisson(800, 25, work=steady(0.05))), begin=17)


@pytest.mark.guarantee("the limit follows changes of the service")
def test_service_that_slows_down_without_a_queue_is_not_throttled_for_long() -> None:
    assert slower_without_a_queue(GradientLimit()) < 0.01


@pytest.mark.control("the limit follows changes of the service")
def test_the_control_without_dips_it_is_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientLimit, "_begin_dip", lambda *_: None)
    assert slower_without_a_queue(GradientLimit(memory_s=1e9)) > 0.2


def kept_when_slower_under_overload() -> float:
    """Return the goodput relative to the capacity, after it fell to a quarter at three times the load."""
    service = VirtualService(GradientLimit(), 8, pace=lambda now: 4.0 if now > 10 else 1.0)
    outcomes = service.run(poisson(3 * 8 / 0.02, 30, work=steady(0.02)))
    return goodput(outcomes, slow_s=0.2 + 0.16, begin=13, end=30) / (8 / 0.08)


@pytest.mark.guarantee("the limit follows changes of the service")
def test_service_that_slows_down_under_overload_keeps_its_goodput() -> None:
    assert kept_when_slower_under_overload() >= 0.9


@pytest.mark.control("the limit follows changes of the service")
def test_the_control_latencies_learned_from_the_queue_cost_goodput(monkeypatch: pytest.MonkeyPatch) -> None:
    def learn_from_what_comes(self: GradientLimit, now_s: float, window: object) -> None:
        self._unloaded.clear()
        self._starting, self._dip, self._next_probe_s = True, None, now_s + 8
        self._restart_window(now_s)

    monkeypatch.setattr(GradientLimit, "_end_dip", learn_from_what_comes)
    assert kept_when_slower_under_overload() < 0.8


def lowest_after_a_change(*, kinds: bool) -> float:
    """Return the lowest limit, relative to before, after expensive requests replace cheap ones."""
    service = VirtualService(GradientLimit(), 100)
    cheap = [*poisson(4000, 10, work=steady(0.005), kind="cheap")]
    few = [*poisson(20, 10, work=steady(0.1), kind="expensive" if kinds else "cheap", seed=3)]
    expensive = poisson(300, 10, work=steady(0.1), kind="expensive" if kinds else "cheap", seed=2)
    later = [Arrival(arrival.due_s + 10, arrival.work_s, arrival.kind) for arrival in expensive]
    service.run(iter(sorted([*cheap, *few, *later], key=lambda arrival: arrival.due_s)))
    before = [limit for moment, limit in service.limits if moment < 10][-1]
    return min(limit for moment, limit in service.limits if moment > 10.2) / before


@pytest.mark.guarantee("the limit follows changes of the service")
def test_changed_mix_of_routes_does_not_lower_the_limit() -> None:
    assert lowest_after_a_change(kinds=True) >= 1


@pytest.mark.control("the limit follows changes of the service")
def test_the_control_without_kinds_it_lowers_the_limit() -> None:
    assert lowest_after_a_change(kinds=False) < 0.7


def test_aimd_limit_keeps_its_latency_target() -> None:
    service = VirtualService(AIMDLimit(target_s=0.02), 1)
    outcomes = service.run(poisson(600, 20, work=steady(0.005)))
    assert goodput(outcomes, slow_s=0.2, begin=5) >= 0.9 * 200
    assert mean_limit(service, begin=5) == pytest.approx(4, abs=1.5)


def test_dropped_requests_lower_the_limit() -> None:
    limit, now = GradientLimit(), 0.0
    for number in range(400):
        now += 0.01
        limit.record(now - 0.01, now, in_flight=limit.limit, kind="", dropped=number % 10 == 0)
    assert limit.limit < 5


def test_limits_stay_within_their_bounds() -> None:
    rng, now = random.Random(1), 0.0
    limits = [GradientLimit(minimum=3, maximum=30), AIMDLimit(target_s=0.05, minimum=3, maximum=30)]
    for _ in range(20_000):
        now += rng.expovariate(500)
        for limit in limits:
            latency_s = rng.choice([0.0, 0.001, 0.05, 5.0])
            limit.record(
                now - latency_s,
                now,
                in_flight=rng.randrange(1, 40),
                kind=rng.random(),
                dropped=rng.random() < 0.01,
            )
            assert 1 <= limit.limit <= 30
    assert isinstance(limits[0], GradientLimit)
    assert len(limits[0]._unloaded) <= GradientLimit.MAX_KINDS + 1


# ------------------------------------------------------------------ clients that send again at once


class Probing(FixedLimit):
    """A limit that is one during the second half of each second."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.usual, self.is_probing = limit, False

    def record(self, started_s: float, ended_s: float, **_: object) -> None:
        self.is_probing = ended_s % 1.0 > 0.5
        self.limit = 1 if self.is_probing else self.usual


def refused_in_a_closed_loop(limit: Limit, *, clients: int, servers: int, work_s: float) -> int:
    """How many requests are shed within a minute of clients that send the next one 1 ms after an answer."""
    controller = AdmissionController(limit, FairQueue(size=100, max_wait_s=0.1, busy_wait_s=0.01))
    events: list[tuple[float, int, str, QueuedRequest | None]] = []
    order, shed, free = itertools.count(), 0, servers
    line: list[QueuedRequest] = []

    def push(at: float, what: str, request: QueuedRequest | None = None) -> None:
        heapq.heappush(events, (at, next(order), what, request))

    def woken(request: QueuedRequest) -> None:
        nonlocal shed
        if request.state == "admitted":
            line.append(request)
        else:
            shed += 1
            push(now + 0.001, "send")

    for number in range(clients):
        push(number / 1000, "send")
    now = 0.0
    while now < 60:
        now, _, what, request = heapq.heappop(events)
        if what == "send":
            sent = QueuedRequest()
            sent.wake = partial(woken, sent)
            controller.submit(sent, now)
        else:
            assert request is not None
            free += 1
            push(now + 0.001, "send")
            controller.release(request, now, ended_s=now)
        while free and line:
            free -= 1
            push(now + work_s, "end", line.pop(0))
    return shed


@pytest.mark.guarantee(
    "a few clients that send again at once are not refused",
    pattern="overload",
    under="fewer places than clients, probing",
)
@pytest.mark.parametrize("make", [lambda: FixedLimit(4), lambda: Probing(4), GradientLimit])
def test_few_clients_in_a_closed_loop_are_not_refused(make: Callable[[], Limit]) -> None:
    assert refused_in_a_closed_loop(make(), clients=8, servers=4, work_s=0.003) == 0


@pytest.mark.control("a few clients that send again at once are not refused", "only an empty queue keeps up")
def test_the_control_a_queue_that_is_never_empty_counts_as_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FairQueue, "_is_short", lambda self, now_s: False)
    assert refused_in_a_closed_loop(FixedLimit(2), clients=8, servers=4, work_s=0.003) > 0


def test_overload_in_a_closed_loop_is_still_refused() -> None:
    assert refused_in_a_closed_loop(FixedLimit(4), clients=200, servers=4, work_s=0.02) > 0
