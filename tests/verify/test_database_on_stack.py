"""The database checks on real stacks: a correct service passes, and faults are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tenfold.settings import Settings
from tenfold.stack import Stack, programs
from tenfold.types import Finding, Verdict
from tenfold.verify import CHECKS, run, select
from tests.verify.support import databases


@pytest.fixture(scope="module", autouse=True)
def shared_stack() -> Iterator[None]:
    yield
    databases.stop()


@pytest.fixture(autouse=True)
def installed_programs(requires_server: Callable[[Any, str], Any]) -> None:
    requires_server(programs.find_postgresql(Settings()), "PostgreSQL")
    requires_server(programs.find_nginx(Settings()), "nginx")


@pytest.mark.control(
    "stale reads, reads that go back in time, lost writes, failing reads and leaking pools "
    "are found in any service"
)
def test_correct_service_passes() -> None:
    settings = databases.declared("careful")
    with Stack(settings) as stack:
        found = [one.finding for one in run(select(CHECKS, ["database"]), stack, settings)]
    assert [finding for finding in found if finding.verdict is not Verdict.PASS] == []


def finding(name: str, read: str, **options: Any) -> Finding:
    with ExitStack() as ending:
        stack, settings = databases.careless(read, **options)(Path(), ending)
        (outcome,) = run(select(CHECKS, [name]), stack, settings)
    return outcome.finding


@pytest.mark.guarantee(
    "stale reads, reads that go back in time, lost writes, failing reads and leaking pools "
    "are found in any service"
)
def test_timer_that_pins_reads_fails_when_it_expires() -> None:
    found = finding("own writes are seen", "GET /pinned/notes")
    assert (found.verdict, found.numbers["missed"]) == (Verdict.FAIL, 0)
    assert 1.5 < float(found.numbers["gone_after_s"]) < 4


def test_read_that_does_not_show_the_write_is_a_wrong_declaration() -> None:
    same = finding("own writes are seen", "GET /primary/notes", write_body='{"value": "always the same"}')
    assert same.claim.startswith("GET /primary/notes does not show what POST /notes wrote")
    other = finding("reads never go back", "GET /elsewhere")
    assert other.claim == "GET /elsewhere answers 404: correct verify.read"
    refused = finding("acknowledged write survives", "GET /notes", write="POST /primary/notes")
    assert refused.claim == "POST /primary/notes answers 405: correct verify.write"
    clock = finding("own writes are seen", "GET /clock", write_body='{"value": "x"}')
    assert clock.claim.startswith("GET /clock answers differently each time")


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.pattern == "database"])
def test_undeclared_requests_are_skipped(name: str) -> None:
    found = finding(name, "", write="")
    assert found.verdict is Verdict.SKIP
    assert "verify.read" in found.claim and found.remedy.startswith("set verify.")


def test_pool_larger_than_declared_is_found() -> None:
    pools = {"pool_size": 1, "max_overflow": 0, "engines": 1}
    found = finding("pools keep their budget", "GET /notes", pools=pools)
    assert found.verdict is Verdict.FAIL
    assert "2 are declared" in found.claim
