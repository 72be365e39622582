"""Tasks that take longer than their requests: time between requests, flows, and tasks without an end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tenfold.errors import ScenarioError
from tenfold.measure.load.generator import Generator
from tenfold.measure.search.sequential import is_backlog_growing
from tenfold.measure.trial import TrialRequest

Make = Callable[..., Generator]
Ask = Callable[..., TrialRequest]

SLEEPING = """
    import time
    class Visitor(FastHttpUser):
        @task
        def journey(self):
            for step in range(4):
                self.client.get("/fast")
                time.sleep({sleep})
    """


@pytest.mark.guarantee(
    "the time that a task spends on its own is no queue", pattern="measure", under="sleeps between requests"
)
def test_long_tasks_find_steady_load_and_no_queue(generator: Make, request_for: Ask, service: Any) -> None:
    one = generator(SLEEPING.format(sleep=0.5), slow_ms=250.0, max_users=300)
    one.start_users(10)
    first = one.run(request_for(rate=10.0, duration_s=1.0))
    assert first.good == first.offered and 1.8 < first.task_s < 3.0
    assert first.extra_s == 2 * first.task_s
    before = service.seen["/fast"]
    trial = one.run(request_for(rate=30.0, duration_s=3.0))
    assert trial.good == trial.offered, trial.blocks
    assert 60 < trial.offered < 130
    assert max(block.in_flight for block in trial.blocks) < 20, "tasks, and not requests"
    assert not is_backlog_growing(trial.blocks)
    assert trial.requests == 4 * trial.offered
    assert service.seen["/fast"] - before > 1.5 * trial.requests, "no load before and after"


@pytest.mark.control("the time that a task spends on its own is no queue", "the same time inside the service")
def test_the_control_slow_requests_are_a_queue(generator: Make, request_for: Ask) -> None:
    one = generator(SLEEPING.format(sleep=0.0).replace("/fast", "/sleep/0.5"), slow_ms=250.0, max_users=300)
    one.start_users(10)
    trial = one.run(request_for(rate=30.0, duration_s=2.0))
    assert trial.good == 0 and max(block.in_flight for block in trial.blocks) > 20


def test_task_that_sleeps_first_has_a_result(generator: Make, request_for: Ask) -> None:
    """Also in the first trial, in which the length of tasks is not known yet."""
    one = generator(
        """
        import time
        class Visitor(FastHttpUser):
            @task
            def late(self):
                time.sleep(2.0)
                self.client.get("/fast")
        """,
        slow_ms=250.0,
    )
    one.start_users(10)
    trial = one.run(request_for(rate=10.0, duration_s=1.0))
    assert trial.good == trial.offered > 3 and not trial.silent


def test_tasks_of_one_trial_send_nothing_in_the_next(generator: Make, request_for: Ask, service: Any) -> None:
    one = generator(
        """
        import time
        class Visitor(FastHttpUser):
            @task
            def one(self):
                self.client.get("/fast")
                for step in range(15):
                    time.sleep(0.1)
                    self.client.get("/left-over")
        """,
        slow_ms=250.0,
    )
    one.start_users(10)
    one.run(request_for(rate=20.0, duration_s=0.5))
    one.run(request_for(rate=20.0, duration_s=0.5, settle_s=0.1))
    left = service.seen["/left-over"]
    alone = one.run(request_for(rate=0.1, duration_s=1.5, purpose="alone"))
    assert alone.offered == 1
    assert service.seen["/left-over"] - left <= 15, "more than those of its own arrival"


@pytest.mark.slow
def test_task_without_an_end_is_named_and_stopped(generator: Make, request_for: Ask, service: Any) -> None:
    one = generator(
        """
        import time
        class Visitor(FastHttpUser):
            @task
            def poll(self):
                while True:
                    self.client.get("/fast")
                    time.sleep(0.2)
        """
    )
    one.start_users(5)
    with pytest.raises(ScenarioError, match=r"task Visitor.poll does not end .* let it end"):
        one.run(request_for(rate=10.0, duration_s=1.0))
    with pytest.raises(ScenarioError):
        one.run(request_for(rate=0.5, duration_s=0.5, purpose="alone"))
    count = service.seen["/fast"]
    time.sleep(1.0)
    assert service.seen["/fast"] - count <= 6, "users of the first trial go on"


FLOWS = """
    import time
    class Visitor(FastHttpUser):
        @task
        def buy(self):
            with self.environment.events.request.measure("flow", "buy"):
                self.client.get("/sleep/0.1")
                self.client.get("/sleep/0.1")
                {more}
    """


def test_flow_timed_as_one_event_is_no_further_request(generator: Make, request_for: Ask) -> None:
    one = generator(FLOWS.format(more=""), slow_ms=180.0)
    one.start_users(10)
    trial = one.run(request_for(rate=10.0, duration_s=1.0))
    assert trial.good == trial.offered > 3, trial.blocks
    assert trial.requests == 2 * trial.offered
    assert [endpoint.name for endpoint in trial.endpoints] == ["GET /sleep/0.1"]


def test_failed_flow_fails_the_arrival(generator: Make, request_for: Ask) -> None:
    one = generator(FLOWS.format(more='raise RuntimeError("empty cart")'), slow_ms=180.0)
    one.start_users(10)
    trial = one.run(request_for(rate=10.0, duration_s=1.0))
    assert trial.bad == trial.offered > 3 and trial.requests == 2 * trial.offered


def test_the_control_event_after_a_request_is_a_request(generator: Make, request_for: Ask) -> None:
    one = generator(
        """
        import time
        class Visitor(FastHttpUser):
            @task
            def both(self):
                self.client.get("/fast")
                time.sleep(0.01)
                with self.environment.events.request.measure("own", "message"):
                    time.sleep(0.25)
        """,
        slow_ms=180.0,
    )
    one.start_users(10)
    trial = one.run(request_for(rate=10.0, duration_s=1.0))
    assert trial.requests == 2 * trial.offered and trial.good == 0
