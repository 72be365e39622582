"""The checks of shards on a real stack that is right, and what they make of numbers that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tenfold.settings import Settings
from tenfold.stack import Stack, programs
from tenfold.types import Verdict
from tenfold.verify import CHECKS, run, select
from tenfold.verify.kit.load_clients import SentRequest
from tenfold.verify.sharding.shards import judge_placement, judge_shard_loss, judge_spread
from tests.verify.support import shards


@pytest.fixture(scope="module")
def careful(requires_server: Callable[[Any, str], Any]) -> Iterator[tuple[Stack, Settings]]:
    requires_server(programs.find_postgresql(Settings()), "PostgreSQL")
    settings = shards.declared("careful")
    with Stack(settings) as stack:
        yield stack, settings


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.pattern == "sharding"])
def test_check_passes_on_a_correct_service(careful: tuple[Stack, Settings], name: str) -> None:
    ((outcome),) = run(select(CHECKS, [name]), *careful)
    assert outcome.finding.verdict is Verdict.PASS, outcome.finding


def test_users_on_one_server_are_skipped(careful: tuple[Stack, Settings]) -> None:
    stack, settings = careful
    verify = settings.verify.model_copy(update={"other_user": settings.verify.user})
    settings = settings.model_copy(update={"verify": verify})
    outcomes = list(
        run(
            select(CHECKS, ["a dead shard fails alone", "an older directory writes nothing"]), stack, settings
        )
    )
    assert [outcome.finding.check for outcome in outcomes] == [outcome.check.name for outcome in outcomes]
    assert {outcome.finding.verdict for outcome in outcomes} == {Verdict.SKIP}
    assert "both users are on one server" in outcomes[0].finding.claim


def test_misplaced_row_is_counted(careful: tuple[Stack, Settings]) -> None:
    stack, settings = careful
    server: Any = next(server for server in stack.servers if server.kind == "shard server")
    with psycopg.connect(server.admin_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "UPDATE tenfold.buckets SET owned = false WHERE bucket = (SELECT min(bucket) FROM notes)"
        )
        try:
            (outcome,) = run(select(CHECKS, ["rows are on their own shard"]), stack, settings)
        finally:
            connection.execute("UPDATE tenfold.buckets SET owned = true")
    assert outcome.finding.verdict is Verdict.FAIL
    assert "of notes on shard" in outcome.finding.claim


def sent(*statuses: tuple[int, int]) -> list[SentRequest]:
    return [SentRequest(client, status) for client, status in statuses]


OWN, OTHER = 0, 1


@pytest.mark.parametrize(
    ("requests", "during", "lost", "recovered", "verdict", "says"),
    [
        (
            sent((OWN, 503), (OTHER, 201)),
            sent((OWN, 503)),
            0,
            True,
            Verdict.PASS,
            "its 1 writes were refused",
        ),
        (
            sent((OWN, 503), (OTHER, 500)),
            sent((OWN, 503)),
            0,
            True,
            Verdict.FAIL,
            "1 of 1 writes of others failed",
        ),
        (
            sent((OWN, 503), (OTHER, 201)),
            sent((OWN, 503)),
            2,
            True,
            Verdict.FAIL,
            "2 writes that were answered",
        ),
        (
            sent((OWN, 503), (OTHER, 201)),
            sent((OWN, 503)),
            0,
            False,
            Verdict.FAIL,
            "15 s after shard1 was back",
        ),
        (sent(*[(OWN, 500)] * 9), sent((OWN, 500)), 0, True, Verdict.FAIL, "answered with 500: 9"),
        (sent((OWN, 201), (OTHER, 201)), sent((OTHER, 201)), 0, True, Verdict.SKIP, "no write reached"),
    ],
)
def test_loss_of_a_shard_is_judged(
    requests: list[SentRequest],
    during: list[SentRequest],
    lost: int,
    recovered: bool,
    verdict: Verdict,
    says: str,
) -> None:
    finding = judge_shard_loss(requests, during, hurt="shard1", lost=lost, recovered=recovered)
    assert (finding.verdict, says in finding.claim) == (verdict, True), finding.claim


def test_placement_is_judged() -> None:
    assert judge_placement({}).verdict is Verdict.FAIL
    assert (
        judge_placement({"a": {"notes": (0, 0)}}).claim
        == "no sharded table has rows: the shards are not used"
    )
    assert judge_placement({"a": {"notes": (5, 0)}}).verdict is Verdict.PASS
    assert judge_placement({"a": {"notes": (5, 2)}}).claim == "2 of 5 rows are misplaced, 2 of notes on a"


@pytest.mark.parametrize(
    ("keys", "verdict"),
    [
        ({"a": 5, "b": 5}, Verdict.SKIP),
        ({"a": 5_000, "b": 5_100}, Verdict.PASS),
        ({"a": 500_000, "b": 520_000}, Verdict.PASS),  # unlikely by chance, and no harm
        ({"a": 60, "b": 40}, Verdict.PASS),  # may be chance
        ({"a": 6_000, "b": 3_000}, Verdict.FAIL),
        ({"a": 100, "b": 0}, Verdict.FAIL),
    ],
)
def test_spread_is_judged(keys: dict[str, int], verdict: Verdict) -> None:
    assert judge_spread(keys, {"a": 2048, "b": 2048}).verdict is verdict
    assert judge_spread({**keys, "new": 0}, {"a": 2048, "b": 2048, "new": 0}).verdict is verdict
