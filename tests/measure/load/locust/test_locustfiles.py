"""Locustfiles as people write them, each run unmodified in an open loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenfold.measure.load.generator import Generator
from tenfold.measure.load.schedule import poisson
from tenfold.measure.trial import Trial, TrialRequest

pytestmark = pytest.mark.guarantee(
    "locustfiles run unmodified", pattern="measure", under="nested, sequential, tagged, listening ones"
)

Make = Callable[..., Generator]
Ask = Callable[..., TrialRequest]

PLAIN = """
class Visitor(FastHttpUser):
    wait_time = between(5, 9)
    host = "http://127.0.0.1:1"
    def on_start(self):
        self.token = self.client.post("/login", json={"name": "a"}).json()["token"]
    @task(3)
    def browse(self):
        self.client.get("/products")
    @task
    def order(self):
        self.client.post("/orders", json={}, headers={"Authorization": self.token})
"""
HTTP_USER = PLAIN.replace("FastHttpUser", "HttpUser")
# Of some 48 arrivals both kinds have their share: none of one kind comes once in 100,000 runs.
NESTED = """
class Visitor(FastHttpUser):
    wait_time = between(5, 9)
    @task
    class Shop(TaskSet):
        @task(1)
        class Orders(TaskSet):
            def on_start(self):
                self.left = 3
            @task
            def one(self):
                self.left -= 1
                self.client.get("/nested")
                if not self.left:
                    self.interrupt(reschedule=False)
        @task(2)
        def outer(self):
            self.client.get("/outer")
            self.interrupt()
"""
SEQUENTIAL = """
class Steps(SequentialTaskSet):
    @task
    def first(self):
        self.client.get("/first")
    @task
    def second(self):
        self.client.get("/second")
    @task
    def third(self):
        self.client.get("/third")
class Visitor(FastHttpUser):
    wait_time = constant(9)
    tasks = [Steps]
"""
TASKS_DICT = """
def browse(user):
    user.client.get("/products")
def order(user):
    user.client.post("/orders")
class Visitor(HttpUser):
    tasks = {browse: 3, order: 1}
"""
CATCHING = """
class Visitor(FastHttpUser):
    @task
    def missing_is_fine(self):
        with self.client.get("/missing", catch_response=True) as answer:
            if answer.status_code == 404:
                answer.success()
"""
RENAMED = """
import random
class Visitor(FastHttpUser):
    @task
    def one(self):
        self.client.get(f"/products/{random.random()}", name="/products/{id}")
"""
RESCHEDULING = """
from locust.exception import RescheduleTask
class Visitor(FastHttpUser):
    wait_time = constant(9)
    @task
    def one(self):
        self.client.get("/products")
        raise RescheduleTask()
"""
ONCE = """
from locust.exception import StopUser
class Visitor(FastHttpUser):
    @task
    def one(self):
        self.client.get("/products")
        raise StopUser()
    def on_stop(self):
        self.client.get("/goodbye")
"""
ABSTRACT = """
class Base(FastHttpUser):
    abstract = True
    @task
    def one(self):
        self.client.get("/products")
class Visitor(Base):
    pass
"""
OWN_CLIENT = """
import time
class Visitor(User):
    @task
    def one(self):
        with self.environment.events.request.measure("own", "thing"):
            time.sleep(0.001)
"""
REST = """
class Visitor(FastHttpUser):
    @task
    def one(self):
        with self.rest("GET", "/products") as answer:
            assert answer.js["token"] == "t"
"""
CASES: dict[str, tuple[str, set[str]]] = {
    "plain": (PLAIN, {"GET /products", "POST /orders"}),
    "HttpUser": (HTTP_USER, {"GET /products", "POST /orders"}),
    "nested": (NESTED, {"GET /nested", "GET /outer"}),
    "sequential": (SEQUENTIAL, {"GET /first", "GET /second", "GET /third"}),
    "tasks as a dict": (TASKS_DICT, {"GET /products", "POST /orders"}),
    "catch_response": (CATCHING, {"GET /missing"}),
    "name=": (RENAMED, {"GET /products/{id}"}),
    "RescheduleTask": (RESCHEDULING, {"GET /products"}),
    "StopUser": (ONCE, {"GET /products"}),
    "abstract base": (ABSTRACT, {"GET /products"}),
    "client of its own": (OWN_CLIENT, {"own thing"}),
    "rest()": (REST, {"GET /products"}),
}


def names(trial: Trial) -> set[str]:
    return {endpoint.name for endpoint in trial.endpoints}


def requests(trial: Trial, name: str) -> int:
    return sum(endpoint.requests for endpoint in trial.endpoints if endpoint.name == name)


@pytest.mark.parametrize("case", CASES)
def test_locustfile_runs_unmodified(case: str, generator: Make, request_for: Ask) -> None:
    text, endpoints = CASES[case]
    one = generator(text, slow_ms=2000.0, max_users=8)
    one.start_users(5)
    trial = one.run(request_for())
    assert trial.offered == len(poisson(rate=120.0, duration_s=0.4, seed=1))
    assert trial.good == trial.offered, (trial.errors, trial.blocks)
    assert names(trial) == endpoints
    assert trial.requests >= trial.offered
    assert not trial.errors
    assert not trial.interrupted


def test_weights_of_user_classes_are_kept(generator: Make, request_for: Ask) -> None:
    one = generator(
        """
        class Many(FastHttpUser):
            weight = 3
            @task
            def one(self):
                self.client.get("/many")
        class Few(FastHttpUser):
            @task
            def one(self):
                self.client.get("/few")
        class Admin(FastHttpUser):
            fixed_count = 1
            @task
            def one(self):
                self.client.get("/admin")
        """,
        slow_ms=2000.0,
    )
    one.start_users(20)
    trial = one.run(request_for(rate=200.0, duration_s=2.0))
    share = {name.split("/")[1]: requests(trial, name) / trial.requests for name in names(trial)}
    assert share["many"] == pytest.approx(0.72, abs=0.1)
    assert share["few"] == pytest.approx(0.24, abs=0.1)
    assert share["admin"] < 0.1


def test_sequential_tasks_keep_their_order(generator: Make, request_for: Ask, service: Any) -> None:
    one = generator(SEQUENTIAL, slow_ms=2000.0, max_users=1)
    one.start_users(1)
    trial = one.run(request_for(rate=30.0))
    counts = [service.seen[path] for path in ("/first", "/second", "/third")]
    assert sum(counts) == trial.offered
    assert max(counts) - min(counts) <= 1


def test_tags_and_custom_options_come_from_locust_variables(
    generator: Make, request_for: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCUST_TAGS", "fast")
    one = generator(
        """
        @events.init_command_line_parser.add_listener
        def options(parser):
            parser.add_argument("--greeting", default="hello")
        class Visitor(FastHttpUser):
            @tag("fast")
            @task
            def one(self):
                self.client.get("/" + self.environment.parsed_options.greeting)
            @tag("slow")
            @task
            def other(self):
                self.client.get("/slow")
        """,
        slow_ms=2000.0,
    )
    one.start_users(2)
    assert names(one.run(request_for())) == {"GET /hello"}


def test_event_listeners_of_the_locustfile_fire(
    generator: Make, request_for: Ask, tmp_path: Any, service: Any
) -> None:
    heard = tmp_path / "heard.txt"
    one = generator(
        f"""
        from collections import Counter
        heard = Counter()
        @events.init.add_listener
        def on_init(environment, runner, **_):
            heard["init"] += 1
            assert environment.host and runner is environment.runner and environment.stats
        @events.test_start.add_listener
        def on_test_start(environment, **_):
            heard["test_start"] += 1
        @events.request.add_listener
        def on_request(name, response_time, exception, response, **_):
            heard["request " + name] += 1
        @events.test_stop.add_listener
        def on_test_stop(environment, **_):
            heard["test_stop"] += 1
            open({str(heard)!r}, "w").write(repr(dict(heard)))
        class Visitor(FastHttpUser):
            def on_start(self):
                self.client.post("/login")
            @task
            def one(self):
                self.client.get("/products")
            def on_stop(self):
                self.client.get("/logout")
        """,
        slow_ms=2000.0,
    )
    one.start_users(2)
    trial = one.run(request_for())
    users = service.seen["/login"]
    one.__exit__(None, None, None)
    told = eval(heard.read_text())
    assert told["init"] == told["test_start"] == told["test_stop"] == 1
    assert told["request /products"] == trial.requests
    assert told["request /login"] == users
    assert told["request /logout"] == service.seen["/logout"] == users


def test_logins_are_in_no_histogram(generator: Make, request_for: Ask, service: Any) -> None:
    one = generator(PLAIN, slow_ms=2000.0)
    one.start_users(3)
    trial = one.run(request_for(rate=100.0))
    assert service.seen["/login"] >= 3
    assert "POST /login" not in names(trial)
    assert trial.requests == service.seen["/products"] + service.seen["/orders"]


def test_printing_locustfile_does_not_disturb_the_protocol(generator: Make, request_for: Ask) -> None:
    one = generator(
        """
        class Visitor(FastHttpUser):
            @task
            def one(self):
                print("x" * 10_000)
                self.client.get("/products")
        """,
        slow_ms=2000.0,
    )
    one.start_users(2)
    assert one.run(request_for()).good > 0


def test_sleep_inside_a_task_is_not_in_the_latency(generator: Make, request_for: Ask) -> None:
    one = generator(
        """
        import time
        class Visitor(FastHttpUser):
            @task
            def one(self):
                time.sleep(0.3)
                self.client.get("/products")
                time.sleep(0.3)
                self.client.get("/products")
        """,
        slow_ms=250.0,
        max_users=50,
    )
    one.start_users(40)
    trial = one.run(request_for(rate=20.0, duration_s=1.5))
    assert trial.requests == 2 * trial.offered
    assert max(endpoint.failed for endpoint in trial.endpoints) == 0


def test_locustfile_imports_its_neighbour_modules(generator: Make, request_for: Ask, tmp_path: Any) -> None:
    (tmp_path / "paths.py").write_text("PATH = '/neighbour'\n")
    one = generator(
        """
        from paths import PATH
        class Visitor(FastHttpUser):
            @task
            def one(self):
                self.client.get(PATH)
        """
    )
    one.start_users(1)
    assert names(one.run(request_for())) == {"GET /neighbour"}
