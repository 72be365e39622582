"""What the balancing checks conclude from counts, rows and trials: pure, as tables."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Block, GeneratorHealth, Trial, TrialRequest
from tenfold.types import Verdict
from tenfold.verify.balancing.faults import judged
from tenfold.verify.balancing.goodput import holds, pushed
from tenfold.verify.balancing.goodput import judged as kept
from tenfold.verify.balancing.shares import spread
from tenfold.verify.kit.accesslog import AccessLog, Row, parsed

A, B, C = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"


@pytest.mark.parametrize(
    ("counts", "weights", "verdict"),
    [
        ({A: 60, B: 60}, {A: 1, B: 1}, Verdict.PASS),
        ({A: 70, B: 50}, {A: 1, B: 1}, Verdict.PASS),  # p = 0.07
        ({A: 80, B: 40}, {A: 1, B: 1}, Verdict.FAIL),
        ({A: 80, B: 40}, {A: 2, B: 1}, Verdict.PASS),
        ({A: 120}, {A: 1, B: 1}, Verdict.FAIL),
        ({A: 60, B: 60, C: 1}, {A: 1, B: 1}, Verdict.FAIL),  # to one that should get none
        ({A: 120}, {A: 1}, Verdict.PASS),
        ({}, {A: 1, B: 1}, Verdict.FAIL),
    ],
)
def test_a_spread_is_judged(counts: dict[str, int], weights: dict[str, int], verdict: Verdict) -> None:
    assert spread(counts, weights, {A: "app 1"}).verdict is verdict


def test_a_fair_coin_is_hardly_ever_called_uneven() -> None:
    drawn = random.Random(1)
    spreads = [Counter(drawn.choices([A, B, C], k=180)) for _ in range(1000)]
    uneven = sum(spread(counts, {A: 1, B: 1, C: 1}, {}).verdict is Verdict.FAIL for counts in spreads)
    assert uneven <= 6  # one in a thousand is expected; seven come once in ten thousand times


def row(*sent: int) -> Row:
    return Row("1", "POST", "/orders", 200, tuple([A, B][: len(sent)]), ("502", "200")[: len(sent)], sent)


@pytest.mark.parametrize(
    ("rows", "failures", "verdict", "claim"),
    [
        ([row(100)] * 9, [Counter()], Verdict.PASS, "0 of 9 failed around 1 kills, none was sent twice"),
        ([row(100)] * 9, [Counter({1: 1, 2: 1}), Counter({1: 1})], Verdict.PASS, "3 of 9 failed around 2"),
        ([row(0, 100)] * 9, [Counter()], Verdict.PASS, "none was sent twice"),  # the first was not there
        ([row(100), row(100, 100)], [Counter()], Verdict.FAIL, "1 of 2 requests were sent to a second"),
        ([row(100)] * 9, [Counter({1: 2})], Verdict.FAIL, "a client failed 2 times"),
        ([], [Counter()], Verdict.FAIL, "no request reached nginx"),
    ],
)
def test_repeats_are_judged(
    rows: list[Row], failures: list[Counter[int]], verdict: Verdict, claim: str
) -> None:
    finding = judged(rows, failures)
    assert finding.verdict is verdict
    assert claim in finding.claim


def trial(offered: int, good: int, *, refused: int = 0, late: float = 0.0) -> Trial:
    block = Block(0.0, 1.0, offered=offered, good=good, refused=refused, slow=offered - good - refused)
    health = GeneratorHealth(cpu_share=0.5, late_share=late, lag_p99_ms=1.0)
    return Trial(TrialRequest(offered, 1.0, "overload", 1), 1.0, 0.0, (block,), health)


@pytest.mark.parametrize(
    ("push", "verdict"),
    [
        (trial(300, 95, refused=205), Verdict.PASS),
        (trial(300, 90, refused=210), Verdict.PASS),
        (trial(300, 89, refused=211), Verdict.FAIL),
        (trial(300, 0), Verdict.FAIL),
        (trial(300, 0, late=0.5), Verdict.SKIP),  # says more about the generator
        (trial(300, 300), Verdict.SKIP),  # that was no overload
    ],
)
def test_goodput_is_judged(push: Trial, verdict: Verdict) -> None:
    assert kept(push, 100.0).verdict is verdict


def test_a_capacity_that_was_too_small_is_pushed_further() -> None:
    """A service that does 200/s in truth, whatever is asked of it."""

    class Generator:
        asked: list[float] = []  # noqa: RUF012 - of this test alone

        def run(self, request: TrialRequest) -> Trial:
            self.asked.append(request.rate)
            offered = round(request.rate)
            return trial(offered, min(offered, 200), refused=max(0, offered - 200))

    generator = Generator()
    finding = pushed(generator, 50.0, seed=1)
    assert finding.verdict is Verdict.PASS
    assert generator.asked == [150.0, 450.0, 600.0]


@pytest.mark.parametrize(("does", "true"), [(200, True), (50, False)])
def test_a_stored_capacity_is_believed_while_it_holds(does: int, true: bool) -> None:
    class Generator:
        def run(self, request: TrialRequest) -> Trial:
            offered = round(request.rate)
            return trial(offered, min(offered, does))

    assert holds(Generator(), MeasureSettings(), 100.0) is true


LINE = {
    "id": "a",
    "method": "POST",
    "path": "/x",
    "status": 200,
    "upstream_addr": f"{A}, {B}",
    "upstream_status": "502, 200",
    "upstream_bytes_sent": "0, 120",
}


@pytest.mark.parametrize(
    ("changes", "upstreams", "sent"),
    [
        ({}, (A, B), (0, 120)),
        ({"upstream_addr": A, "upstream_bytes_sent": "7"}, (A,), (7,)),
        ({"upstream_addr": f"{A} : {B}", "upstream_bytes_sent": "7 : 8"}, (A, B), (7, 8)),
        ({"upstream_addr": "", "upstream_bytes_sent": "-"}, (), ()),
    ],
)
def test_a_row_is_read(changes: dict[str, str], upstreams: tuple[str, ...], sent: tuple[int, ...]) -> None:
    found = parsed(json.dumps({**LINE, **changes}))
    assert found is not None
    assert (found.upstreams, found.sent) == (upstreams, sent)


@pytest.mark.parametrize("line", ["", "text", "[]", "{}", '{"id": 1}'])
def test_what_is_no_row_is_left_out(line: str) -> None:
    assert parsed(line) is None


def test_a_log_is_read_from_where_it_was_and_no_line_by_halves(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    line = json.dumps(LINE) + "\n"
    file.write_text(line)
    log = AccessLog(file)
    assert log.rows() == []
    with file.open("a") as opened:
        opened.write(line + line[:20])
        opened.flush()
        assert len(log.rows()) == 1
        opened.write(line[20:])
    assert len(log.rows(quiet_s=0.001)) == 1
