"""The findings of the balancing checks from loads, log entries and trials: pure, by tables."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from tenfold.measure.load.histogram import encode
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Block, Endpoint, GeneratorHealth, Trial, TrialRequest
from tenfold.types import Finding, Verdict
from tenfold.verify.balancing.faults import judge_writes
from tenfold.verify.balancing.goodput import holds, judge_goodput, overload, work_ratio
from tenfold.verify.balancing.load_spread import InstanceLoad, judge_spread, loads_of
from tenfold.verify.kit.access_log import AccessLog, LogEntry, parse_entry

A, B, C = "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"


NAMES = {A: "app 1", B: "app 2", C: "app 3"}


def loads(
    counts: dict[str, int], means: dict[str, float] | None = None, *, paths: int = 1, seed: int = 1
) -> dict[str, InstanceLoad]:
    """Loads of so many requests, with durations that vary by a half around 10 ms."""
    chance = random.Random(seed)
    entries = [
        LogEntry(
            "GET",
            f"/{chance.randrange(paths)}",
            (address,),
            seconds=(means or {}).get(address, 0.01) * chance.uniform(0.5, 1.5),
        )
        for address, count in counts.items()
        for _ in range(count)
    ]
    return loads_of(entries)


def judge(
    found: dict[str, InstanceLoad], weights: dict[str, int] | None = None, method: str = "round_robin"
) -> Finding:
    return judge_spread(found, weights or {A: 1, B: 1, C: 1}, names=NAMES, method=method)


@pytest.mark.control("a random spread is called uneven once in a thousand times at most")
@pytest.mark.parametrize(
    ("counts", "weights", "verdict"),
    [
        ({A: 60, B: 60}, {A: 1, B: 1}, Verdict.PASS),
        ({A: 70, B: 50}, {A: 1, B: 1}, Verdict.PASS),  # p = 0.07
        ({A: 80, B: 40}, {A: 1, B: 1}, Verdict.FAIL),
        ({A: 80, B: 40}, {A: 2, B: 1}, Verdict.PASS),
        ({A: 10_000, B: 9_000}, {A: 1, B: 1}, Verdict.PASS),  # unlikely, and too little to matter
        ({A: 120}, {A: 1, B: 1}, Verdict.FAIL),
        ({A: 90, B: 90}, {A: 1, B: 1, C: 1}, Verdict.FAIL),  # one that got nothing
        ({A: 900, B: 100, C: 10}, {A: 18, B: 2, C: 1}, Verdict.FAIL),  # a small one that got little
        ({A: 60, B: 60, C: 1}, {A: 1, B: 1}, Verdict.FAIL),  # to one that should get none
        ({A: 120}, {A: 1}, Verdict.PASS),
        ({A: 5, B: 2}, {A: 1, B: 1}, Verdict.SKIP),  # too few
        ({}, {A: 1, B: 1}, Verdict.FAIL),
    ],
)
def test_counts_are_compared_with_weights(
    counts: dict[str, int], weights: dict[str, int], verdict: Verdict
) -> None:
    assert judge(loads(counts), weights).verdict is verdict


@pytest.mark.guarantee("a random spread is called uneven once in a thousand times at most", pattern="checks")
def test_random_spread_is_rarely_called_uneven() -> None:
    drawn = random.Random(1)
    found = [judge(loads(Counter(drawn.choices([A, B, C], k=180)))) for _ in range(1000)]
    uneven = sum(finding.verdict is Verdict.FAIL for finding in found)
    assert uneven <= 6  # one in a thousand is expected; seven come once in ten thousand times


@pytest.mark.parametrize("method", ["least_conn", "random_two"])
def test_method_that_follows_speed_has_to_use_every_instance(method: str) -> None:
    assert judge(loads({A: 120, B: 40, C: 30}), method=method).verdict is Verdict.PASS
    finding = judge(loads({A: 120, B: 40}), method=method)
    assert (finding.verdict, finding.claim) == (Verdict.FAIL, "app 3 got none of 160 requests")


def reason(finding: Finding) -> tuple[object, object]:
    assert finding.verdict is Verdict.FAIL and finding.remedy
    return finding.numbers["reason"], finding.numbers["instance"]


@pytest.mark.parametrize("method", ["round_robin", "least_conn"])
def test_slow_instance_is_the_reason(method: str) -> None:
    for counts in ({A: 60, B: 60, C: 60}, {A: 75, B: 75, C: 30}):
        assert reason(judge(loads(counts, {C: 0.04}), method=method)) == ("slow instance", "app 3")
    finding = judge(loads({A: 60, B: 60, C: 60}, {C: 0.012}), method=method)
    assert finding.verdict is Verdict.PASS  # the control: slower by a little


def test_weight_is_the_reason_where_the_heavier_instance_is_slow() -> None:
    counts, weights = {A: 150, B: 15, C: 15}, {A: 10, B: 1, C: 1}
    assert reason(judge(loads(counts, {A: 0.04}), weights)) == ("weight", "app 1")
    assert judge(loads(counts), weights).verdict is Verdict.PASS  # the control: it carries its weight


def test_hot_key_is_the_reason_under_hash() -> None:
    found = loads({A: 100, B: 100, C: 100}, {B: 0.05}, paths=50)
    assert judge(found, method="hash").verdict is Verdict.PASS  # other keys may take longer
    found[B].paths["/product/7"] += 150
    found[B].seconds += [0.01] * 150
    finding = judge(found, method="hash")
    assert reason(finding) == ("hot key", "app 2")
    assert (finding.numbers["key"], finding.numbers["key_requests"]) == ("/product/7", 150)
    assert "150 of its 250 are for /product/7" in finding.claim


def test_few_other_requests_may_be_uneven_by_chance_beside_a_hot_key() -> None:
    found = loads({A: 6, B: 22, C: 12}, paths=20)
    found[B].paths["/product/7"] += 120
    found[B].seconds += [0.01] * 120
    assert reason(judge(found, method="hash")) == ("hot key", "app 2")


@pytest.mark.control("uneven load on a running stack is found with its reason")
def test_surplus_of_many_keys_is_not_blamed_on_one() -> None:
    found = loads({A: 100, B: 300, C: 100}, paths=50)
    assert reason(judge(found, method="hash")) == ("unknown", "app 2")


def entry(*sent: int) -> LogEntry:
    return LogEntry("POST", "/orders", tuple([A, B][: len(sent)]), sent)


@pytest.mark.parametrize(
    ("entries", "failures", "verdict", "claim"),
    [
        ([entry(100)] * 9, [Counter()], Verdict.PASS, "0 of 9 failed around 1 kills, none was sent twice"),
        ([entry(100)] * 9, [Counter({1: 1, 2: 1}), Counter({1: 1})], Verdict.PASS, "3 of 9 failed around 2"),
        ([entry(0, 100)] * 9, [Counter()], Verdict.PASS, "none was sent twice"),  # the first was not there
        ([entry(100), entry(100, 100)], [Counter()], Verdict.FAIL, "1 of 2 requests were sent to a second"),
        ([entry(100)] * 9, [Counter({1: 2})], Verdict.FAIL, "a client failed 2 times"),
        ([], [Counter()], Verdict.FAIL, "no request reached nginx"),
    ],
)
def test_repeated_writes_and_failures_are_judged(
    entries: list[LogEntry], failures: list[Counter[int]], verdict: Verdict, claim: str
) -> None:
    finding = judge_writes(entries, failures)
    assert finding.verdict is verdict
    assert claim in finding.claim


def trial(
    offered: int, good: int, *, refused: int = 0, late: float = 0.0, endpoints: tuple[Endpoint, ...] = ()
) -> Trial:
    block = Block(0.0, 1.0, offered=offered, good=good, refused=refused, slow=offered - good - refused)
    health = GeneratorHealth(cpu_share=0.5, late_share=late, lag_p99_ms=1.0)
    return Trial(TrialRequest(offered, 1.0, "overload", 1), 1.0, 0.0, (block,), health, endpoints)


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
    assert judge_goodput(push, 100.0).verdict is verdict


def test_capacity_that_was_too_small_is_raised() -> None:
    """A service whose true capacity is 200/s."""

    class Generator:
        rates: list[float] = []  # noqa: RUF012 - of this test alone

        def run(self, request: TrialRequest) -> Trial:
            self.rates.append(request.rate)
            offered = round(request.rate)
            return trial(offered, min(offered, 200), refused=max(0, offered - 200))

    generator = Generator()
    finding = overload(generator, 50.0, MeasureSettings())
    assert finding.verdict is Verdict.PASS
    assert generator.rates == [40.0, 150.0, 450.0, 600.0]


def endpoint(name: str, answers: list[float], *, refused: int = 0) -> Endpoint:
    latencies = encode(answers)
    return Endpoint(name, len(answers) + refused, 0, refused, {}, latencies, latencies)


@pytest.mark.parametrize(
    ("orders", "pages", "kept", "verdict"),
    [
        (30, 0, 1.41, Verdict.PASS),  # all orders of three times the load, and no page
        (10, 80, 0.94, Verdict.PASS),
        (0, 90, 0.53, Verdict.PASS),  # all that is cheap, and none of what is dear
        (5, 40, 0.47, Verdict.FAIL),
    ],
)
def test_work_counts_where_some_requests_are_preferred(
    orders: int, pages: int, kept: float, verdict: Verdict
) -> None:
    """At the capacity of 100/s, ten orders of 80 ms and ninety pages of 10 ms."""
    before = trial(80, 80, endpoints=(endpoint("order", [80.0] * 8), endpoint("page", [10.0] * 72)))
    push = trial(
        300, orders + pages, refused=300 - orders - pages,
        endpoints=(
            endpoint("order", [150.0] * orders, refused=30 - orders),
            endpoint("page", [20.0] * pages + [900.0] * 7, refused=270 - pages),
        ),
    )  # fmt: skip
    found = work_ratio(push, before, 100.0, slow_ms=200)
    assert found == pytest.approx(kept, abs=0.05)
    assert judge_goodput(push, 100.0, kept_work=found).verdict is verdict


@pytest.mark.parametrize(("does", "true"), [(200, True), (50, False)])
def test_stored_capacity_is_used_while_it_holds(does: int, true: bool) -> None:
    class Generator:
        def run(self, request: TrialRequest) -> Trial:
            offered = round(request.rate)
            return trial(offered, min(offered, does))

    assert holds(Generator(), MeasureSettings(), 100.0) is true


LINE = {
    "method": "POST",
    "path": "/x",
    "status": 200,
    "upstream_addr": f"{A}, {B}",
    "upstream_bytes_sent": "0, 120",
    "upstream_response_time": "0.001, 0.020",
}


@pytest.mark.parametrize(
    ("changes", "upstreams", "sent", "seconds"),
    [
        ({}, (A, B), (0, 120), 0.02),
        ({"upstream_addr": A, "upstream_bytes_sent": "7", "upstream_response_time": "nan"}, (A,), (7,), 0.0),
        ({"upstream_addr": f"{A} : {B}", "upstream_bytes_sent": "7 : 8"}, (A, B), (7, 8), 0.02),
        ({"upstream_addr": "", "upstream_bytes_sent": "-", "upstream_response_time": "-"}, (), (), 0.0),
    ],
)
def test_log_entry_is_parsed(
    changes: dict[str, str], upstreams: tuple[str, ...], sent: tuple[int, ...], seconds: float
) -> None:
    found = parse_entry(json.dumps({**LINE, **changes}))
    assert found is not None
    assert (found.upstreams, found.sent_bytes, found.seconds) == (upstreams, sent, seconds)


@pytest.mark.parametrize("line", ["", "text", "[]", "{}", '{"method": "GET"}'])
def test_other_lines_are_left_out(line: str) -> None:
    assert parse_entry(line) is None


def test_log_is_read_from_its_end_on_and_by_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    line = json.dumps(LINE) + "\n"
    file.write_text(line)
    log = AccessLog(file)
    assert log.read_new() == []
    with file.open("a") as opened:
        opened.write(line + line[:20])
        opened.flush()
        assert len(log.read_new()) == 1
        opened.write(line[20:])
    assert len(log.read_new(quiet_s=0.001)) == 1
