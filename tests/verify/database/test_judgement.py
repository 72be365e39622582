"""The findings of the database checks from counts and answers: pure, by tables and properties."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import TargetError
from tenfold.types import Verdict
from tenfold.verify.database.outages import judge_outages
from tenfold.verify.database.pool_pressure import ConnectionPeak, judge_pool_budget
from tenfold.verify.database.staleness import judge_replica_share
from tenfold.verify.database.write_probe import WriteDetector
from tenfold.verify.kit.load_clients import SentRequest


@pytest.mark.parametrize(
    ("counts", "reads", "wanted", "verdict", "part"),
    [
        ((10, 490, 500), 1000, 0.5, Verdict.PASS, "99% of 1000"),
        ((500, 250, 250), 1000, 0.5, Verdict.PASS, "50% of 1000"),
        ((501, 250, 249), 1000, 0.5, Verdict.FAIL, "50% are wanted"),
        ((501, 250, 249), 1000, 0.4, Verdict.PASS, "replica 1 25%"),
        ((1000, 0, 0), 1000, 0.5, Verdict.FAIL, "replicas took 0%"),
        ((10, 980, 10), 1000, 0.5, Verdict.FAIL, "replica 2 took hardly any"),
        ((0, 0, 0), 1000, 0.5, Verdict.SKIP, "1000 reads left 0 transactions"),
        ((20, 30, 40), 1000, 0.5, Verdict.SKIP, "cannot be judged"),
    ],
)
def test_replica_share_is_judged(
    counts: Sequence[int], reads: int, wanted: float, verdict: Verdict, part: str
) -> None:
    named = dict(zip(("primary", "replica 1", "replica 2"), counts, strict=True))
    found = judge_replica_share(named, reads, wanted)
    assert found.verdict is verdict
    assert part in found.claim
    assert (verdict is Verdict.PASS) == (not found.remedy)


def sent(**statuses: int) -> list[SentRequest]:
    return [SentRequest(0, int(name[1:])) for name, count in statuses.items() for _ in range(count)]


def test_faults_are_named_with_their_failed_reads() -> None:
    good = judge_outages({"kill of replica 1": sent(s200=90, s404=5), "a hang": sent(s200=9)})
    assert (good.verdict, good.numbers["reads"]) == (Verdict.PASS, 104)
    bad = judge_outages({"kill of replica 1": sent(s200=90, s500=7, s0=3), "a hang": sent(s200=9)})
    assert bad.verdict is Verdict.FAIL
    assert bad.claim == "10 of 109 reads failed: 10 at kill of replica 1 (500: 7, no answer: 3)"


@pytest.mark.parametrize(
    ("answers", "most", "verdict", "part"),
    [
        (sent(s200=50, s429=50), {"primary": 20}, Verdict.PASS, "20 of 20 connections"),
        (sent(s200=50), {"primary": 5, "replica 1": 21}, Verdict.FAIL, "replica 1 had 21 connections"),
        (sent(s200=50, s500=1), {"primary": 5}, Verdict.FAIL, "1 of 51 reads by 30 clients failed (500: 1)"),
        (sent(s429=50), {"primary": 5}, Verdict.FAIL, "(429: 50)"),
        (sent(), {}, Verdict.FAIL, "0 of 0"),
    ],
)
def test_pool_budget_is_judged(
    answers: list[SentRequest], most: dict[str, int], verdict: Verdict, part: str
) -> None:
    found = judge_pool_budget(answers, most, allowed=20, clients=30)
    assert found.verdict is verdict
    assert part in found.claim


def test_connections_that_cannot_be_counted_raise() -> None:
    unreachable = SimpleNamespace(name="primary", admin_url="postgresql://127.0.0.1:1/shop")
    with (
        pytest.raises(TargetError, match="the connections could not be counted"),
        ConnectionPeak([unreachable]),
    ):
        pass


texts = st.lists(st.text(max_size=3), max_size=8)


@given(before=texts, after=texts)
def test_without_values_a_new_answer_shows_the_write(before: list[str], after: list[str]) -> None:
    detector = WriteDetector(has_values=False)
    for text in before:
        detector.shows_write(text)
    detector.record_write("ignored")
    assert [detector.shows_write(text) for text in after] == [text not in before for text in after]
    detector.record_write("ignored")
    assert not any(detector.shows_write(text) for text in (*before, *after))


@given(st.text(min_size=1), st.text(), st.text())
def test_with_values_the_answer_has_to_hold_the_value(value: str, head: str, tail: str) -> None:
    detector = WriteDetector(has_values=True)
    detector.record_write(value)
    assert detector.shows_write(head + value + tail)
    assert detector.shows_write(head) == (value in head)
