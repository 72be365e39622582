"""What only a real stack shows: files, logs, and a balancer that repeats what it must not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tenfold.settings import Settings
from tenfold.stack import Stack, programs
from tenfold.types import Verdict
from tenfold.verify.balancing import faults
from tenfold.verify.sessions import instances, leaks
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


def test_files_far_from_the_app_are_found(naive: tuple[Stack, Settings]) -> None:
    stack, settings = naive
    finding = instances.local_files(stack, settings.sessions)
    assert finding.verdict is Verdict.FAIL
    assert f"{settings.service.environment['CARTS']}/kept.cart" in finding.claim


def test_ids_in_a_log_are_found(naive: tuple[Stack, Settings]) -> None:
    stack, settings = naive
    finding = leaks.hidden(stack, settings.sessions)
    assert finding.verdict is Verdict.FAIL
    assert "an id is shown in app 1" in finding.claim


def repeating(stack: Stack) -> None:
    """Let nginx pass on whatever fails, as many a configuration on the web does."""
    assert stack.access_log is not None
    file = stack.access_log.with_name("nginx.conf")
    text, line = file.read_text(), "proxy_next_upstream error timeout"
    assert f"{line};" in text
    file.write_text(text.replace(f"{line};", f"{line} non_idempotent;"))
    (door,) = [server for server in stack.servers if server.kind == "nginx"]
    master, *workers = door.pids()
    os.kill(master, signal.SIGHUP)
    deadline = time.monotonic() + 10
    while set(workers) & set(door.pids()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_balancer_that_repeats_posts_is_found(naive: tuple[Stack, Settings]) -> None:
    stack, settings = naive
    honest = faults.repeated(stack, settings.balancing, ready_path="/orders")
    assert honest.verdict is Verdict.PASS, honest
    repeating(stack)
    finding = faults.repeated(stack, settings.balancing, ready_path="/orders")
    assert finding.verdict is Verdict.FAIL
    assert "were sent to a second instance" in finding.claim
