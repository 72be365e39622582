"""The diagnosis as a whole: the limit, its causes, what is merely present, and what was not measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tenfold.measure.diagnosis.detector import BottleneckDetector
from tenfold.measure.machine.resources import GroupSample, MachineSample, Resources, Sample
from tenfold.measure.observer import TrialRecord, at_the_limit
from tenfold.measure.postgresql.explain import IndexProof, Plan
from tenfold.measure.probe.aggregate import Aggregate
from tenfold.measure.probe.evidence import Evidence, MemoryStats
from tests.measure.support.facts import (
    FULL,
    MISSING,
    PLAN,
    REPEATED,
    SEEN,
    SLOW,
    call,
    clock,
    evidence,
    facts,
    pool,
    resources,
    route,
    sample,
    window,
)


def test_limit_comes_with_its_causes_and_their_share_of_it() -> None:
    limit = window(
        loop_clock=clock(cpu_s=9.0), samples=(sample("run", 9.0),), used={"app": 0.95}, client_s=0.5
    )
    analysis = BottleneckDetector().diagnose(facts(limit))
    assert analysis.limit is not None and analysis.limit.resource == "python"
    (found,) = analysis
    assert (found.cause, found.share) == ("plain_cpu", 1.0)
    assert str(analysis).startswith("What stops it: Python in the app")


def test_healthy_service_has_a_limit_and_nothing_to_repair() -> None:
    lines = tuple(sample("run", 1.0, line=f"app.py:{10 * n}") for n in range(9))
    limit = window(loop_clock=clock(cpu_s=9.0), samples=lines, used={"app": 0.95}, client_s=0.5)
    analysis = BottleneckDetector().diagnose(facts(limit))
    assert analysis.limit is not None and not analysis.bottlenecks
    assert analysis.limit.remedy.startswith("nothing stands out to repair: ")


def test_garbage_collection_is_told_beside_python() -> None:
    pauses = MemoryStats(pauses=90, pause_s=3.0, longest_s=0.1)
    limit = window(loop_clock=clock(cpu_s=9.0), used={"app": 0.95}, client_s=0.5, memory=pauses)
    found = BottleneckDetector().diagnose(facts(limit)).limit
    assert found is not None and "garbage collection takes 30 % of the time" in found.evidence[-1]
    calm = window(loop_clock=clock(cpu_s=9.0), used={"app": 0.95}, client_s=0.5)
    found = BottleneckDetector().diagnose(facts(calm)).limit
    assert found is not None and "garbage" not in " ".join(found.evidence)


def test_proven_index_that_uses_little_of_the_limit_is_present() -> None:
    proof = IndexProof(before_ms=20, after_ms=0.1, cost_before=5000, cost_after=9)
    plan = replace(PLAN, missing=(replace(MISSING, proof=proof),))
    held = (sample("http", 90.0, holds=True), sample("db", 2.0, holds=True))
    limit = window(
        pools=(pool(**FULL),),
        routes=(route(total_s=20.0, wait_s=12.0),),
        samples=held,
        statements=(SLOW, call()),
    )
    analysis = BottleneckDetector().diagnose(facts(limit, plans={plan.fingerprint: plan}))
    assert [one.cause for one in analysis] == ["held_during_call"]
    (line,) = analysis.present
    assert line.startswith("missing index on orders (user_id): a look-up takes 0.10 ms")
    assert line.endswith(MISSING.create)


def test_deadlock_explains_the_requests_that_hang() -> None:
    stuck = route(unfinished=9, unfinished_s=5.0, unfinished_waiting=9, wait_s=12.0)
    held = (sample("pool", 40.0, holds=True, line="app.py:18"),)
    both = window(pools=(pool(**FULL),), routes=(stuck,), samples=held, stalled_s=4.0)
    assert [one.cause for one in BottleneckDetector().diagnose(facts(both))] == ["deadlock"]
    alone = window(routes=(stuck,), stalled_s=4.0, unfinished_at=(("app.py:30", 9),))
    (found,) = [one for one in BottleneckDetector().diagnose(facts(alone)) if one.kind == "Requests"]
    assert (found.where, found.title) == ("app.py:30", "GET /orders does not finish")


@pytest.mark.parametrize(
    ("used", "title"),
    [({"memory": 0.86}, "memory is nearly full"), ({"iowait": 0.21}, "CPUs wait for the disk")],
)
def test_memory_and_disk_of_the_machine_are_told(used: dict[str, float], title: str) -> None:
    found = BottleneckDetector().rank(evidence(), resources(**used))
    assert [one.title for one in found] == [title]
    assert not BottleneckDetector().rank(evidence(), resources(memory=0.85, iowait=0.2)).bottlenecks


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"statements": ()}, "no statement ran in these trials"),
        ({}, "no connection was checked out in these trials"),
        ({"pool_kinds": ("NullPool",)}, "the engine uses NullPool, which has no queue to observe"),
    ],
)
def test_unseen_pool_has_the_true_reason(changes: dict[str, Any], says: str) -> None:
    blind = evidence(pools=(), seen=SEEN | {"pool": False}, **changes)
    assert f"connection pool: not seen ({says})" in BottleneckDetector().rank(blind, resources()).not_measured


def test_unobserved_sources_are_listed_as_not_measured() -> None:
    blind = Evidence(seconds=1, workers=0, seen=dict.fromkeys(SEEN, False))
    analysis = BottleneckDetector().rank(blind, None)
    assert not analysis.bottlenecks
    text = "; ".join(analysis.not_measured)
    for name in ("requests", "statements and pools", "event loop", "CPU, memory"):
        assert name in text
    rank = BottleneckDetector().rank
    assert "4 requests: dropped" in "; ".join(rank(evidence(dropped=4), resources()).not_measured)
    unexplained = Plan(SLOW.fingerprint, reason="permission denied")
    assert "permission denied" in "; ".join(rank(evidence(), resources(), plans=(unexplained,)).not_measured)
    portable = evidence(loop_clock=None, thread_clock=None)
    assert "what threads wait for" in "; ".join(rank(portable, resources()).not_measured)


def test_candidates_are_named_where_no_limit_is_found() -> None:
    grown = window(statements=(REPEATED,), routes=(route(total_s=10.0),))
    found = BottleneckDetector().diagnose(facts(grown))
    assert found.limit is not None and found.limit.resource == "none"
    assert [one.cause for one in found] == ["n_plus_one"]


def test_busiest_trial_counts_not_the_mean_over_all() -> None:
    """0.94 cores in the failed trial, 0.26 in the one that confirms: the limit is Python."""
    quiet = MachineSample(**(dict.fromkeys(MachineSample.__struct_fields__, 0.1) | {"throttled": 0.0}))

    def at(second: float, cores: float) -> Sample:
        return Sample(second, {"app": GroupSample(cpu_cores=cores, rss_bytes=1)}, quiet)

    samples = tuple(at(n / 2, 0.94 if n < 8 else 0.26) for n in range(40))
    whole = Resources(2, samples)
    busy = BottleneckDetector().rank(evidence(), whole.during(((0.0, 3.5), (4.0, 20.0)))).limit
    calm = BottleneckDetector().rank(evidence(), whole).limit
    assert busy is not None and busy.title.startswith("Python in the app, 0.94 cores")
    assert calm is not None and calm.resource != "python"


def record(rate: float) -> TrialRecord:
    return TrialRecord(rate, 0.0, 1.0, Aggregate(0.0), 1.0)


@pytest.mark.parametrize(
    ("low", "high", "rates"),
    [
        (50.0, 60.0, [45, 55, 80]),  # up to 90/s; the ramp's 160/s is far beyond
        (50.0, None, [45, 55, 80 - 5]),
        (10.0, 12.0, [20]),
        (None, None, [20, 45, 55, 80, 160]),
        (500.0, None, [20, 45, 55, 80, 160]),
    ],
)
def test_diagnosis_reads_the_trials_at_and_beyond_the_limit(
    low: float | None, high: float | None, rates: list[float]
) -> None:
    all_rates = [20, 45, 55, 75 if rates[-1] == 75 else 80, 160]
    records = [record(rate) for rate in all_rates]
    assert [one.rate for one in at_the_limit(records, low, high)] == rates


def test_evidence_and_resources_round_trip_as_json() -> None:
    whole = evidence(samples=(sample("run", 1.0),))
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Evidence) == whole
    used = resources()
    assert msgspec.json.decode(msgspec.json.encode(used), type=Resources) == used


def test_request_that_is_slow_alone_is_told_with_what_takes_its_time() -> None:
    found = BottleneckDetector().rank(evidence(samples=(sample("run", 40.0),)), resources())
    assert found.limit is not None and found.limit.resource == "delay"
    assert "ms alone, 400 ms of it on the CPU" in found.limit.title
    assert [one.cause for one in found] == ["plain_cpu"]
