"""Habits of public locustfiles that meet how tenfold drives users: logins, barriers, accounts, hosts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tenfold.errors import ScenarioError
from tenfold.measure.load.generator import Generator
from tenfold.measure.measurement import shape_notice
from tenfold.measure.trial import TrialRequest

Make = Callable[..., Generator]
Ask = Callable[..., TrialRequest]

LOGIN_IN_TASK_SET = """
class Behaviour(TaskSet):
    def on_start(self):
        self.client.post("/login", json={})
    @task
    def one(self):
        self.client.get("/products")
class Visitor(HttpUser):
    wait_time = between(5, 9)
    tasks = [Behaviour]
"""


def endpoints(one: Generator, request: TrialRequest) -> set[str]:
    trial = one.run(request)
    assert trial.good == trial.offered, (trial.errors, trial.blocks)
    return {endpoint.name for endpoint in trial.endpoints}


@pytest.mark.parametrize("inner", ["", "class Inner(Behaviour):\n    pass\nBehaviour.tasks = [Inner]\n"])
def test_login_of_a_task_set_is_no_arrival(
    inner: str, generator: Make, request_for: Ask, service: Any
) -> None:
    text = LOGIN_IN_TASK_SET.replace("class Visitor", f"{inner}class Visitor")
    if inner:
        text = text.replace("    pass\n", "    tasks = [Behaviour.one]\n")
    one = generator(text, slow_ms=2000.0, max_users=5)
    one.start_users(5)
    before = service.seen["/login"]
    assert endpoints(one, request_for(rate=60.0)) == {"GET /products"}
    assert service.seen["/login"] == before


def test_login_of_a_task_set_that_fails_is_a_failed_login(generator: Make) -> None:
    text = LOGIN_IN_TASK_SET.replace(
        'self.client.post("/login", json={})', 'raise RuntimeError("no account")'
    )
    one = generator(text, max_users=8)
    with pytest.raises(
        ScenarioError, match=r"none of . users got through on_start: RuntimeError: no account"
    ):
        one.start_users(5)


def test_barrier_until_all_users_are_spawned_opens(generator: Make, request_for: Ask) -> None:
    one = generator(
        """
        from gevent.event import Event
        everybody = Event()
        @events.spawning_complete.add_listener
        def spawned(user_count, **_):
            everybody.set()
        class Visitor(FastHttpUser):
            def on_start(self):
                everybody.wait()
            @task
            def one(self):
                self.client.get("/products")
        """,
        slow_ms=2000.0,
        max_users=12,
    )
    begun = time.monotonic()
    one.start_users(12)  # more than log in at once
    assert time.monotonic() - begun < 10
    assert endpoints(one, request_for(rate=60.0)) == {"GET /products"}


def test_number_of_users_is_known_when_the_test_starts(generator: Make, request_for: Ask) -> None:
    one = generator(
        """
        @events.test_start.add_listener
        def started(environment, **_):
            environment.seen = (
                environment.runner.target_user_count, environment.parsed_options.num_users
            )
        class Visitor(FastHttpUser):
            @task
            def one(self):
                self.client.get("/" + "-".join(map(str, self.environment.seen)))
        """,
        slow_ms=2000.0,
        max_users=7,
    )
    one.start_users(3)
    assert endpoints(one, request_for(rate=60.0)) == {"GET /7-7"}


@pytest.mark.parametrize("take", ["accounts.pop()", "accounts.get()"])
def test_five_accounts_for_ten_users_are_five_users(take: str, generator: Make, request_for: Ask) -> None:
    kind = "list(range(5))" if "pop" in take else "queue()"
    one = generator(
        f"""
        import time
        from gevent.queue import Queue
        def queue():
            made = Queue()
            for number in range(5):
                made.put(number)
            return made
        accounts = {kind}
        class Visitor(FastHttpUser):
            def on_start(self):
                self.account = {take}
                time.sleep(0.5)
            @task
            def one(self):
                self.client.get("/products")
        """,
        slow_ms=2000.0,
        max_users=10,
    )
    begun = time.monotonic()
    one.start_users(10)
    assert time.monotonic() - begun < 12
    assert endpoints(one, request_for(rate=30.0)) == {"GET /products"}


def test_path_of_a_class_host_stays(generator: Make, request_for: Ask, service: Any) -> None:
    one = generator(
        """
        class Visitor(HttpUser):
            host = "http://127.0.0.1:1/"
            @task
            def one(self):
                self.client.get("products")
        class Other(FastHttpUser):
            host = "http://127.0.0.1:1/api"
            @task
            def one(self):
                self.client.get("/orders")
        """,
        slow_ms=2000.0,
        max_users=6,
    )
    one.start_users(4)
    endpoints(one, request_for(rate=60.0))
    assert service.seen["/products"] > 0
    assert service.seen["/api/orders"] > 0


def test_load_shape_is_said_not_to_be_used(generator: Make) -> None:
    one = generator(
        """
        from locust import LoadTestShape
        class Steps(LoadTestShape):
            def tick(self):
                return None
        class Visitor(FastHttpUser):
            @task
            def one(self):
                self.client.get("/products")
        """
    )
    assert list(shape_notice(one)) == [
        "Steps (a LoadTestShape) was not used: the search for the capacity decides each load"
    ]


def test_missing_option_of_the_locustfile_is_named(generator: Make) -> None:
    with pytest.raises(ScenarioError, match=r"arguments are required: --account; set it in locust\.conf"):
        generator(
            """
            @events.init_command_line_parser.add_listener
            def options(parser):
                parser.add_argument("--account", required=True)
            class Visitor(FastHttpUser):
                @task
                def one(self):
                    self.client.get("/products")
            """
        )
