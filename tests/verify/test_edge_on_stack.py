"""The checks of the edge on a service that shares what it may, and one that shares everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tenfold.edge import public
from tenfold.settings import Settings
from tenfold.stack import Stack
from tenfold.types import Verdict
from tenfold.verify import CHECKS, run, select
from tenfold.verify.edge.attack import Attack
from tenfold.verify.edge.hits import judge_hits
from tenfold.verify.kit.access_log import LogEntry
from tests.verify.support import edges


@pytest.fixture(scope="module")
def careful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Settings]]:
    with ExitStack() as ending:
        yield edges.start("careful", {"/": public(ttl=60)})(tmp_path_factory.mktemp("edge"), ending)


def test_service_that_shares_what_it_may_passes(careful: tuple[Stack, Settings]) -> None:
    stack, settings = careful
    found = [each.finding for each in run(select(CHECKS, ["edge"]), stack, settings)]
    assert [finding for finding in found if finding.verdict is not Verdict.PASS] == []
    assert len(found) == 2


def test_attack_says_what_is_shared(tmp_path: Path) -> None:
    with ExitStack() as ending:
        stack, settings = edges.start("careless", edges.EVERYTHING)(tmp_path, ending)
        attack = Attack(stack.url, settings.verify, pages=["/"], personal=["/me"])
        problems = attack.run()
    assert "another user gets the answer of the user who asked /me first" in problems
    assert "a stranger gets the answer of the user who asked /me first" in problems
    assert "a stranger's X-Host is in the answer of / that others get" in problems
    assert not [problem for problem in problems if "X-Forwarded-Host" in problem]


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        (["MISS", "HIT", "HIT", "STALE"], Verdict.PASS),
        (["MISS", "HIT", "MISS", ""], Verdict.FAIL),
        (["MISS", *["HIT"] * 60, "EXPIRED"], Verdict.PASS),
        (["MISS", *["HIT"] * 60, *["EXPIRED"] * 3], Verdict.FAIL),
        ([], Verdict.FAIL),
    ],
)
def test_hit_ratio(statuses: list[str], verdict: Verdict) -> None:
    entries = [LogEntry("GET", "/", (), cache=status) for status in statuses]
    assert judge_hits(entries).verdict is verdict
