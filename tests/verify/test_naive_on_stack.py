"""Faults that need a real stack: files, logs, uneven load, and nginx that repeats a POST."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tenfold.settings import ServiceSettings, Settings
from tenfold.stack import Stack, programs
from tenfold.types import Verdict
from tenfold.verify.balancing import faults, load_spread
from tenfold.verify.balancing.nginx_probe import slow_down
from tenfold.verify.kit.instances import app_servers
from tenfold.verify.sessions import instances, leaks
from tests.support.waiting import eventually
from tests.verify.support import stacks


@pytest.fixture(scope="module")
def naive(
    tmp_path_factory: pytest.TempPathFactory, requires_server: Callable[[Any, str], Any]
) -> Iterator[tuple[Stack, Settings]]:
    requires_server(programs.find_nginx(Settings()), "nginx")
    folder = tmp_path_factory.mktemp("naive")
    settings = stacks.declared(folder, "own:naive", instances=2, redis=False)
    carts = {"CARTS": str(tmp_path_factory.mktemp("carts"))}
    service = settings.service.model_copy(update={"environment": carts})
    settings = settings.model_copy(update={"service": service})
    with Stack(settings) as stack:
        yield stack, settings


@pytest.mark.guarantee(
    "files that requests leave behind are named",
    pattern="checks",
    under="in a folder that a variable names, in the temporary folder, kept open",
)
def test_files_in_a_folder_that_a_variable_names_are_found(naive: tuple[Stack, Settings]) -> None:
    stack, settings = naive
    finding = instances.check_local_files(stack, settings)
    assert finding.verdict is Verdict.FAIL
    assert f"{settings.service.environment['CARTS']}/kept.cart" in finding.claim


@pytest.mark.guarantee("files that requests leave behind are named")
def test_files_in_the_temporary_folder_are_found(naive: tuple[Stack, Settings]) -> None:
    stack, settings = naive
    unnamed = settings.model_copy(
        update={"service": ServiceSettings(app="own:naive", folder=Path("service"))}
    )
    finding = instances.check_local_files(stack, unnamed)
    assert finding.verdict is Verdict.FAIL
    assert "kept.cart" in finding.claim


@pytest.mark.guarantee("ids in logs are found", pattern="checks", under="an app that prints them")
def test_session_ids_in_a_log_are_found(naive: tuple[Stack, Settings]) -> None:
    stack, settings = naive
    finding = leaks.check_leaks(stack, settings)
    assert finding.verdict is Verdict.FAIL
    assert "an id is shown in app 1" in finding.claim


@pytest.mark.guarantee(
    "uneven load on a running stack is found with its reason",
    pattern="balancing",
    under="a slow instance, a hot key, a weight",
)
def test_slow_instance_is_named_as_the_reason(naive: tuple[Stack, Settings]) -> None:
    stack, settings = naive
    even = load_spread.check_load_spread(stack, settings)
    assert even.verdict is Verdict.PASS, even
    with slow_down(app_servers(stack)[1], stopped_s=0.03):
        # Found in 6 of 6 runs beside five other busy processes; three attempts, since it is a test of chance.
        findings = (load_spread.check_load_spread(stack, settings) for _ in range(3))
        finding = next((one for one in findings if one.verdict is Verdict.FAIL), even)
    assert finding.verdict is Verdict.FAIL
    assert (finding.numbers["reason"], finding.numbers["instance"]) == ("slow instance", "app 2")


HOT_KEY = """
import random
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task(9)
    def hot(self):
        self.client.get("/product/7")

    @task(3)
    def other(self):
        self.client.get(f"/product/{random.randrange(100, 200)}")
"""


@pytest.mark.guarantee("uneven load on a running stack is found with its reason")
def test_hot_key_is_named_as_the_reason(naive: tuple[Stack, Settings], tmp_path: Path) -> None:
    settings = stacks.declared(tmp_path, "own:naive", instances=2, redis=False, method="hash")
    (tmp_path / "locustfile.py").write_text(HOT_KEY)
    with Stack(settings) as stack:
        finding = load_spread.check_load_spread(stack, settings)
    assert finding.verdict is Verdict.FAIL
    assert (finding.numbers["reason"], finding.numbers["key"]) == ("hot key", "/product/7")


@pytest.mark.guarantee("uneven load on a running stack is found with its reason")
def test_weight_that_slows_an_instance_is_named_as_the_reason(
    naive: tuple[Stack, Settings], tmp_path: Path
) -> None:
    settings = stacks.declared(
        tmp_path, "own:naive", instances=2, redis=False, method="round_robin", weights=(9, 1)
    )
    settings = settings.model_copy(
        update={"verify": settings.verify.model_copy(update={"read": "GET /work"})}
    )
    with Stack(settings) as stack:
        finding = load_spread.check_load_spread(stack, settings)
    assert finding.verdict is Verdict.FAIL
    assert (finding.numbers["reason"], finding.numbers["instance"]) == ("weight", "app 1")


def repeat_writes(stack: Stack) -> None:
    """Let nginx pass on every failed request, as configurations on the web often do."""
    assert stack.access_log is not None
    file = stack.access_log.with_name("nginx.conf")
    text, line = file.read_text(), "proxy_next_upstream error timeout"
    assert f"{line};" in text
    file.write_text(text.replace(f"{line};", f"{line} non_idempotent;"))
    (nginx,) = [server for server in stack.servers if server.kind == "nginx"]
    master, *workers = nginx.pids()
    os.kill(master, signal.SIGHUP)
    eventually(lambda: not set(workers) & set(nginx.pids()))


@pytest.mark.guarantee(
    "a POST that went to two instances is found",
    pattern="checks",
    under="nginx with `non_idempotent`",
    control="the same test, before nginx is changed",
)
def test_nginx_that_repeats_posts_is_found(naive: tuple[Stack, Settings]) -> None:
    stack, settings = naive
    slow_write = settings.verify.model_copy(update={"write": "POST /work"})  # some are in flight at any time
    settings = settings.model_copy(update={"verify": slow_write})
    correct = faults.check_repeated_writes(stack, settings)
    assert correct.verdict is Verdict.PASS, correct
    repeat_writes(stack)
    finding = faults.check_repeated_writes(stack, settings)
    assert finding.verdict is Verdict.FAIL
    assert "were sent to a second instance" in finding.claim
