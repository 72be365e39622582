"""Guarantees of an open-loop trial, with the closed loop as negative control."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tenfold.errors import ScenarioError
from tenfold.measure.load import histogram
from tenfold.measure.load.generator import Generator
from tenfold.measure.load.schedule import poisson
from tenfold.measure.trial import Block, Trial, TrialRequest

Make = Callable[..., Generator]
Ask = Callable[..., TrialRequest]


def visiting(path: str, *, wait: str = "constant(30)") -> str:
    return f"""
        class Visitor(FastHttpUser):
            wait_time = {wait}
            @task
            def one(self):
                self.client.get("{path}")
        """


def total(trial: Trial, result: str) -> int:
    return sum(getattr(block, result) for block in trial.blocks)


def assert_adds_up(trial: Trial) -> None:
    for block in trial.blocks:
        assert block.offered == block.good + block.slow + block.failed + block.refused + block.unsent
    assert trial.seconds == pytest.approx(sum(block.seconds for block in trial.blocks))


@pytest.mark.guarantee(
    "every arrival has exactly one result",
    pattern="measure",
    under="slow, failing, refusing, silent services",
)
def test_every_due_arrival_has_a_result_and_blocks_come_in_order(generator: Make, request_for: Ask) -> None:
    one = generator(visiting("/fast"))
    one.start_users(5)
    seen: list[Block] = []
    for seed in (1, 2):
        seen.clear()
        trial = one.run(request_for(rate=150.0, duration_s=1.3, seed=seed), seen.append)
        assert_adds_up(trial)
        assert list(trial.blocks) == seen
        assert [block.start_s for block in trial.blocks] == [0.0, 0.5, 1.0]
        assert trial.offered == len(poisson(rate=150.0, duration_s=1.3, seed=seed))
        assert trial.seconds == pytest.approx(1.3)
        assert trial.settled_s < 1.0
        assert histogram.count(trial.raw) == trial.requests == sum(e.requests for e in trial.endpoints)
        assert 0 < trial.generator.cpu_share < 1.5


ANSWERS = [
    ("/fast", "good", "200"),
    ("/sleep/0.7", "slow", "200"),
    ("/fail", "failed", "500"),
    ("/missing", "failed", "404"),
    ("/refuse", "refused", "503"),
    ("/limit", "refused", "429"),
]


@pytest.mark.guarantee(
    "refusals are never fast answers", pattern="measure", under="429, 503", control="the same table's 200"
)
def test_result_follows_the_answer(generator: Make, request_for: Ask, tmp_path: Path) -> None:
    switch = tmp_path / "path"
    one = generator(
        f"""
        class Visitor(FastHttpUser):
            @task
            def one(self):
                self.client.get(open({str(switch)!r}).read(), name="/it")
        """,
        slow_ms=500.0,
    )
    for path, result, status in ANSWERS:
        switch.write_text(path)
        one.start_users(10)
        trial = one.run(request_for(rate=30.0))
        assert_adds_up(trial)
        assert total(trial, result) == trial.offered, (path, trial)
        (endpoint,) = trial.endpoints
        assert endpoint.statuses == {status: trial.offered}
        assert endpoint.failed == (trial.offered if result == "failed" else 0)
        assert endpoint.refused == (trial.offered if result == "refused" else 0)
        bad = {} if result in ("good", "slow") else {f"GET /it answered {status}": trial.offered}
        assert trial.errors == bad


TASKS = [
    ("raises", "failed", "KeyError: 'token' (locustfile.py:"),
    ("raises_after_an_answer", "failed", "KeyError: 'no' (locustfile.py:"),
    ("fails_by_hand", "failed", "GET /fast: CatchResponseError: wrong"),
    ("calls_a_refusal_a_success", "refused", "GET /refuse answered 503"),
    ("fails_second", "failed", "GET /fail answered 500"),
    ("is_slow_second", "slow", ""),
]


def test_result_follows_the_task(generator: Make, request_for: Ask, tmp_path: Path) -> None:
    switch = tmp_path / "task"
    one = generator(
        f"""
        class Visitor(FastHttpUser):
            @task
            def one(self):
                getattr(self, open({str(switch)!r}).read())()
            def raises(self):
                raise KeyError("token")
            def raises_after_an_answer(self):
                self.client.get("/fast").json()["no"]
            def fails_by_hand(self):
                with self.client.get("/fast", catch_response=True) as answer:
                    answer.failure("wrong")
            def calls_a_refusal_a_success(self):
                with self.client.get("/refuse", catch_response=True) as answer:
                    answer.success()
            def fails_second(self):
                self.client.get("/fast")
                self.client.get("/fail")
            def is_slow_second(self):
                self.client.get("/fast")
                self.client.get("/sleep/0.7")
        """,
        slow_ms=500.0,
    )
    for task, result, error in TASKS:
        switch.write_text(task)
        one.start_users(10)
        trial = one.run(request_for(rate=30.0))
        assert_adds_up(trial)
        assert total(trial, result) == trial.offered, (task, trial)
        assert bool(trial.errors) == bool(error)
        assert all(message.startswith(error) for message in trial.errors)
        assert not trial.silent


# Tasks that send past Locust, and the request that it knows of each, if any.
SILENT = {
    "another client, an error": "past(self.host + '/fail')",
    "another client, a success": "past(self.host + '/fast')",
    "nothing": "pass",
    "another greenlet": (
        "gevent.spawn(self.environment.events.request.fire, request_type='x', name='y', "
        "response_time=1.0, response_length=0, exception=None).join()"
    ),
    "too late": "gevent.spawn_later(0.3, self.client.get, '/fast')",
}
HEARD = {
    "client in another greenlet": "gevent.spawn(self.client.get, '/fast').join()",
    "event in its own greenlet": (
        "self.environment.events.request.fire("
        "request_type='x', name='y', response_time=1.0, response_length=0, exception=None)"
    ),
}


def sending(body: str, *, every: int = 1) -> str:
    """A locustfile whose every n-th arrival runs ``body``, the others a request that Locust knows."""
    return f"""
        import contextlib, gevent, itertools, urllib.request
        turn = itertools.count()
        def past(url):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url)
        class Visitor(FastHttpUser):
            @task
            def browse(self):
                if next(turn) % {every}:
                    self.client.get("/fast")
                else:
                    {body}
        """


@pytest.mark.guarantee(
    "an arrival without a request that Locust knows is never a success",
    pattern="measure",
    under="requests past self.client, from other greenlets, or none",
)
@pytest.mark.parametrize("case", SILENT)
def test_arrival_without_known_request_has_no_result(generator: Make, request_for: Ask, case: str) -> None:
    one = generator(sending(SILENT[case]), slow_ms=2000.0)
    one.start_users(3)
    with pytest.raises(ScenarioError, match=r"100 % of the arrivals .*task Visitor.browse.*self.client"):
        one.run(request_for(rate=30.0))


@pytest.mark.control("an arrival without a request that Locust knows is never a success", "requests it knows")
@pytest.mark.parametrize("case", HEARD)
def test_the_control_known_requests_have_results(generator: Make, request_for: Ask, case: str) -> None:
    one = generator(sending(HEARD[case]), slow_ms=2000.0)
    one.start_users(3)
    trial = one.run(request_for(rate=30.0))
    assert trial.good == trial.offered == trial.requests > 5 and not trial.silent


def test_few_arrivals_without_a_request_are_left_out_and_counted(generator: Make, request_for: Ask) -> None:
    one = generator(sending("pass", every=40), slow_ms=2000.0)
    one.start_users(3)
    trial = one.run(request_for(rate=120.0, duration_s=2.0))
    assert_adds_up(trial)
    silent = trial.silent["Visitor.browse"]
    assert silent == total(trial, "silent") >= 5
    assert trial.offered + silent == len(poisson(rate=120.0, duration_s=2.0, seed=1))


@pytest.mark.guarantee("a queue shows in the latencies", pattern="measure", under="a service that stalls")
def test_stall_shows_in_corrected_latencies_and_not_in_raw_ones(
    generator: Make, request_for: Ask, service: Any
) -> None:
    """Two users wait for the service, and so do the arrivals that became due meanwhile."""
    one = generator(visiting("/fast"), slow_ms=3000.0, max_users=2)
    one.start_users(2)
    trial = one.run(request_for(rate=100.0, duration_s=2.6), stall_once(service))
    assert_adds_up(trial)
    (endpoint,) = trial.endpoints
    assert histogram.percentile(endpoint.corrected, 99) > 600
    assert histogram.percentile(endpoint.raw, 99) < 400


@pytest.mark.control("a queue shows in the latencies")
def test_the_control_closed_loop_hides_the_same_stall(generator: Make, service: Any) -> None:
    """Without the correction, little is left of a second without answers."""
    one = generator(visiting("/fast", wait="constant(0.02)"), slow_ms=3000.0, max_users=2)
    trial = one.run_closed_loop(users=2, spawn_rate=10, duration_s=2.6, on_block=stall_once(service))
    assert trial.offered > 70
    (endpoint,) = trial.endpoints
    assert endpoint.corrected == endpoint.raw
    assert histogram.percentile(endpoint.corrected, 97) < 400
    assert histogram.percentile(endpoint.corrected, 100) > 600


def stall_once(service: Any) -> Callable[[Block], None]:
    def on_block(block: Block) -> None:
        if block.start_s == 0.5:
            service.stall(1.0)

    return on_block


@pytest.mark.control("every arrival has exactly one result")
def test_arrival_without_idle_user_is_unsent(generator: Make, request_for: Ask) -> None:
    one = generator(visiting("/sleep/0.3"), slow_ms=400.0, max_users=2)
    one.start_users(2)
    trial = one.run(request_for(rate=50.0, duration_s=1.5))
    assert_adds_up(trial)
    assert trial.users == 2
    assert total(trial, "unsent") > trial.offered / 2
    # They count in the latencies of all, with the time they waited for nothing.
    assert histogram.count(trial.corrected) >= trial.requests + total(trial, "unsent")
    assert histogram.share_above(trial.corrected, 390.0) > 0.5
    assert total(trial, "late") == 0


def test_users_are_added_during_a_trial(generator: Make, request_for: Ask) -> None:
    one = generator(visiting("/sleep/0.5"), slow_ms=100.0, max_users=40)
    one.start_users(2)
    trial = one.run(request_for(rate=30.0, duration_s=2.0))
    assert 5 < trial.users <= 40
    assert trial.notes["logins"] > 0


def test_stop_rule_ends_the_trial_early(generator: Make, request_for: Ask) -> None:
    asked: list[int] = []

    class AfterTwo:
        def should_stop(self, blocks: Sequence[Block]) -> bool:
            asked.append(len(blocks))
            return len(blocks) >= 2

    one = generator(visiting("/fast"))
    one.start_users(5)
    trial = one.run(request_for(rate=100.0, duration_s=30.0, rule=AfterTwo()))
    assert_adds_up(trial)
    assert 1.0 <= trial.seconds < 5.0
    assert asked[:2] == [1, 2]
    assert trial.request.duration_s == 30.0
    # The generator can go on with the next.
    assert one.run(request_for(duration_s=0.5)).good > 0


def test_unanswered_requests_count_with_their_time_so_far(generator: Make, request_for: Ask) -> None:
    one = generator(visiting("/sleep/20"), slow_ms=200.0, max_users=10)
    one.start_users(10)
    trial = one.run(request_for(rate=20.0, duration_s=1.0, settle_s=0.5))
    assert_adds_up(trial)
    assert trial.good == 0
    assert trial.settled_s >= 0.5
    (endpoint,) = trial.endpoints
    assert endpoint.statuses == {"unanswered": 10}
    assert trial.notes["requests unanswered at the end"] == 10
    assert histogram.percentile(endpoint.corrected, 100) > 500


def test_delayed_generator_is_reported_as_limited(generator: Make, request_for: Ask) -> None:
    """Arrivals that leave late because of the generator count as late."""
    one = generator(visiting("/fast"))
    one.start_users(20)
    # The control; retried, since the machine itself may have stalled.
    calm = (one.run(request_for(rate=50.0, duration_s=1.0)) for _ in range(5))
    assert any(not trial.generator.is_limited(late=0.2) for trial in calm)

    def hold_up(block: Block) -> None:
        if block.start_s == 0.0:
            os.kill(one.pid, signal.SIGSTOP)
            threading.Timer(0.5, os.kill, (one.pid, signal.SIGCONT)).start()

    trial = one.run(request_for(rate=50.0, duration_s=2.0), hold_up)
    assert_adds_up(trial)
    assert trial.generator.is_limited(late=0.1)
    assert trial.generator.lag_p99_ms > 200
    assert total(trial, "late") > 0


WORKS = """
import time
from gevent.monkey import get_original
from locust import FastHttpUser, task

def compute():
    until = time.process_time() + 0.04
    while time.process_time() < until:
        pass

def block():
    get_original("time", "sleep")(0.04)

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get("/fast")
        {work}()
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux tells what a thread waited for")
@pytest.mark.parametrize(("work", "fault"), [("compute", "cpu"), ("block", "blocked")])
def test_locustfile_that_holds_all_users_up_limits_the_trial(
    generator: Make, request_for: Ask, work: str, fault: str
) -> None:
    one = generator(WORKS.format(work=work))
    one.start_users(20)
    found = [one.run(request_for(rate=30.0, duration_s=1.5)).generator for _ in range(2)]
    limited = [health for health in found if health.is_limited() and health.fault == fault]
    assert limited, found
    if work == "block":
        stalls = limited[0].stalls
        assert stalls and stalls.blocked_at == "locustfile.py:14"  # two lines of imports come before


def test_closed_loop_keeps_locusts_own_pace(generator: Make) -> None:
    one = generator(visiting("/fast", wait="constant(0.2)"))
    trial = one.run_closed_loop(users=4, spawn_rate=100, duration_s=2.0)
    assert_adds_up(trial)
    assert trial.request.purpose == "closed"
    assert 20 <= trial.offered <= 44  # of each of the four users one at once, and ten at 0.2 s
    assert trial.users == 4
    assert trial.request.rate == pytest.approx(trial.offered / trial.seconds)


def test_open_and_closed_trials_can_follow_each_other(generator: Make, request_for: Ask) -> None:
    one = generator(visiting("/fast", wait="constant(0.1)"))
    one.start_users(3)
    assert one.run(request_for(duration_s=0.5)).good > 0
    assert one.run_closed_loop(users=3, spawn_rate=100, duration_s=1.0).good > 0
    assert one.run(request_for(duration_s=0.5)).good > 0


def test_calibration_returns_a_rate(generator: Make) -> None:
    one = generator(visiting("/fast").replace("FastHttpUser", "HttpUser"))
    assert 50 < one.calibrate() < 50_000
