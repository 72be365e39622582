"""A service that does it right passes every check of replicas and pools; one that does not is told why."""

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
def servers() -> Iterator[None]:
    yield
    databases.end()


@pytest.fixture(autouse=True)
def programs_are_there(requires_server: Callable[[Any, str], Any]) -> None:
    requires_server(programs.find_postgresql(Settings()), "PostgreSQL")
    requires_server(programs.find_nginx(Settings()), "nginx")


def test_a_service_that_does_it_right_passes() -> None:
    settings = databases.declared("careful")
    with Stack(settings) as stack:
        found = [one.finding for one in run(select(CHECKS, ["database"]), stack, settings)]
    assert [finding for finding in found if finding.verdict is not Verdict.PASS] == []


def finding(name: str, read: str, **database: Any) -> Finding:
    with ExitStack() as ending:
        stack, settings = databases.careless(read, **database)(Path(), ending)
        (outcome,) = run(select(CHECKS, [name]), stack, settings)
    return outcome.finding


def test_a_timer_is_found_out_when_it_is_over() -> None:
    found = finding("own writes are seen", "GET /pinned/notes")
    assert (found.verdict, found.numbers["missed"]) == (Verdict.FAIL, 0)
    assert 1.5 < float(found.numbers["gone_after_s"]) < 4


def test_reads_that_do_not_show_writes_are_a_wrong_declaration() -> None:
    same = finding("own writes are seen", "GET /primary/notes", write_body='{"value": "always the same"}')
    assert same.claim.startswith("GET /primary/notes does not show what POST /notes wrote")
    other = finding("reads never go back", "GET /elsewhere")
    assert other.claim == "GET /elsewhere answers 404: correct database.read"
    refused = finding("acknowledged write survives", "GET /notes", write="POST /primary/notes")
    assert refused.claim == "POST /primary/notes answers 405: correct database.write"
    clock = finding("own writes are seen", "GET /clock", write_body='{"value": "x"}')
    assert clock.claim.startswith("GET /clock answers differently each time")


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.pattern == "database"])
def test_what_is_not_declared_is_skipped(name: str) -> None:
    found = finding(name, "", write="")
    assert found.verdict is Verdict.SKIP
    assert "database.read" in found.claim and found.remedy.startswith("set database.")


def test_a_declared_budget_that_is_exceeded_is_found() -> None:
    found = finding("pools keep their budget", "GET /notes", pool_size=1, max_overflow=0, engines=1)
    assert found.verdict is Verdict.FAIL
    assert "2 are declared" in found.claim
