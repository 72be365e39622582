"""A service that caches with tenfold passes the checks of caches, on a real stack; judgements, pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenfold.settings import Settings
from tenfold.stack import Stack, programs
from tenfold.types import Verdict
from tenfold.verify import CHECKS, run, select
from tenfold.verify.caching.cached_reads import (
    judge_database_hang,
    judge_foreign_answers,
    judge_redis_outage,
)
from tenfold.verify.kit.load_clients import SentRequest
from tests.verify.support import caches


def test_careful_cache_passes(requires_server: Callable[[Any, str], Any]) -> None:
    requires_server(programs.find_redis(Settings()), "Redis")
    settings = caches.declared("careful")
    with Stack(settings) as stack:
        found = {each.check.name: each.finding for each in run(select(CHECKS, ["caching"]), stack, settings)}
    assert found.pop("cached reads need no database").verdict is Verdict.SKIP
    assert [finding for finding in found.values() if finding.verdict is not Verdict.PASS] == []


def sent(good: int, bad: int) -> list[SentRequest]:
    return [SentRequest(0, 200)] * good + [SentRequest(0, 0)] * bad


@pytest.mark.parametrize(
    ("good", "bad", "verdict"),
    [(100, 0, Verdict.PASS), (90, 10, Verdict.PASS), (89, 11, Verdict.FAIL), (0, 0, Verdict.FAIL)],
)
def test_database_hang(good: int, bad: int, verdict: Verdict) -> None:
    assert judge_database_hang(sent(good, bad)).verdict is verdict


@pytest.mark.parametrize(("bad", "verdict"), [(0, Verdict.PASS), (1, Verdict.FAIL)])
def test_redis_outage(bad: int, verdict: Verdict) -> None:
    assert judge_redis_outage(sent(100, bad)).verdict is verdict


@pytest.mark.parametrize(
    ("mixed", "alone", "verdict"),
    [
        (["b", "b"], ["b", "b"], Verdict.PASS),
        (["b", "a"], ["b", "b"], Verdict.FAIL),
        (["a", "a"], ["b", "b"], Verdict.FAIL),
        (["1", "2"], ["3", "4"], Verdict.SKIP),
    ],
)
def test_foreign_answers(mixed: list[str], alone: list[str], verdict: Verdict) -> None:
    assert judge_foreign_answers({"GET /me": mixed}, {"GET /me": alone}).verdict is verdict
