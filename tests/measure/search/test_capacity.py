"""The capacity search: its outcomes, and the coverage of its intervals."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from benchmarks.capacity import CASES, Case, covers, erlang_capacity, exponential, tail
from benchmarks.support.virtual import Service, VirtualGenerator
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.measure.search.capacity import Capacity, CapacitySearch
from tenfold.measure.settings import MeasureSettings, Objective
from tenfold.measure.trial import Block, GeneratorHealth, Trial, TrialRequest

Run = Callable[[TrialRequest], Trial]
CALM = GeneratorHealth(cpu_share=0.3, late_share=0.0, lag_p99_ms=0.2)


def run_search(run: Run, search: CapacitySearch | None = None) -> Capacity:
    search = search or CapacitySearch(MeasureSettings())
    while (request := search.next_trial()) is not None:
        search.record(run(request))
    return search.result()


def scripted(
    share: Callable[[float], float], *, health: Callable[[TrialRequest], GeneratorHealth] = lambda _: CALM
) -> Run:
    """A generator for a service with exactly this share of bad arrivals at each rate."""

    def run(request: TrialRequest) -> Trial:
        blocks: list[Block] = []
        due = 0.0
        while len(blocks) * 0.5 + 1e-9 < request.duration_s:
            before, due = int(due), due + request.rate / 2
            offered = int(due) - before
            bad = share(request.rate)
            slow = min(int(int(due) * bad) - int(before * bad), offered)
            blocks.append(Block(len(blocks) * 0.5, 0.5, offered, offered - slow, slow=slow))
            if request.rule is not None and request.rule.should_stop(blocks):
                break
        return Trial(request, len(blocks) * 0.5, 0.4, tuple(blocks), health(request))

    return run


def step(at: float) -> Callable[[float], float]:
    return lambda rate: 1.0 if rate > at else 0.0


@pytest.mark.parametrize("capacity", [3.0, 26.0, 58.0, 300.0, 2500.0])
def test_interval_contains_a_sharp_step(capacity: float) -> None:
    found = run_search(scripted(step(capacity)))
    assert found.outcome == "found"
    assert found.low is not None and found.high is not None and found.width is not None
    assert found.low <= capacity <= found.high
    assert found.width < (0.25 if capacity > 100 else 0.6 if capacity > 20 else 1.3)
    assert found.seconds <= 90.5


@pytest.mark.parametrize("floor", [0.01, 0.02, 0.03])
def test_floor_below_the_limit_does_not_end_the_ramp(floor: float) -> None:
    found = run_search(scripted(lambda rate: 1.0 if rate > 260 else floor))
    assert found.low is not None and found.high is not None
    assert 180 < found.low <= 260 <= found.high < 330
    assert found.floor == pytest.approx(floor, abs=0.012)


def test_objective_missed_at_one_request_at_a_time_is_below() -> None:
    found = run_search(scripted(lambda rate: 0.6))
    assert (found.outcome, found.stopped_by, found.low, found.high) == ("below", "objective", None, 1.0)
    assert found.seconds < 30


def test_objective_missed_by_the_only_request_that_was_sent_is_below() -> None:
    """One at a time, a request that is not answered is the only one."""

    def run(request: TrialRequest) -> Trial:
        offered = 1 if request.purpose == "alone" else 8
        blocks = (Block(0.0, 0.5, offered, 0, slow=offered), Block(0.5, 10.0, 0, 0))
        return Trial(request, 10.5, 0.4, blocks, CALM)

    assert run_search(run).outcome == "below"


def test_trial_without_counted_arrivals_has_no_verdict() -> None:
    """At less than one arrival a second a short trial may have none after its first second."""
    patient = MeasureSettings(objective=Objective(slow_ms=3000), budget_s=60)
    bad, good = scripted(lambda rate: 1.0), scripted(lambda rate: 0.0)

    def run(request: TrialRequest) -> Trial:
        if request.purpose == "warm-up":
            return bad(request)
        if request.rate < 1 and request.purpose == "ramp":
            return Trial(request, 3.0, 0.4, (Block(0.0, 0.5, 1, 1), Block(0.5, 2.5, 0, 0)), CALM)
        return (bad if request.rate > 4 else good)(request)

    found = run_search(run, CapacitySearch(patient))
    assert found.outcome == "found" and found.high is not None and found.high < 8


def test_trial_shorter_than_the_objective_is_no_lower_bound() -> None:
    """One server, 1 s of work, an objective of 3 s: 3 s at 1.3/s show nothing slow."""
    generator = VirtualGenerator(Service(1, lambda rng, count: np.ones(count)), seed=2, slow_ms=3000)
    patient = MeasureSettings(objective=Objective(slow_ms=3000), budget_s=60)
    found = run_search(generator.run, CapacitySearch(patient))
    assert found.low is None or found.low < 1.0


def test_capacity_below_one_at_a_time_is_found() -> None:
    """One at a time meets the objective, every open-loop rate that was tried misses it."""
    bad = scripted(lambda rate: 1.0)
    good = scripted(lambda rate: 0.0)
    found = run_search(lambda request: (good if request.purpose == "alone" else bad)(request))
    assert found.outcome == "found" and found.low is not None and found.high is not None
    assert 0 < found.low < found.high <= 2.0
    assert found.low == pytest.approx(0.25)  # 5 % of arrivals may find the service busy


def test_capacity_of_a_few_requests_per_second_is_found() -> None:
    found = run_search(scripted(step(3.0)))
    assert found.outcome == "found"
    assert found.high is not None and found.high < 8


def test_budget_without_a_failing_rate_gives_a_lower_bound() -> None:
    found = run_search(scripted(lambda rate: 0.0), CapacitySearch(MeasureSettings(budget_s=20)))
    assert (found.outcome, found.stopped_by, found.high) == ("at_least", "budget", None)
    assert found.low == found.clean_rate
    assert found.low is not None and found.low >= 40


def test_generator_ceiling_gives_a_lower_bound() -> None:
    found = run_search(scripted(lambda rate: 0.0), CapacitySearch(MeasureSettings(), ceiling=500))
    assert (found.outcome, found.stopped_by, found.low, found.high) == ("at_least", "generator", 500, None)


def limited_above(rate: float) -> Callable[[TrialRequest], GeneratorHealth]:
    late = GeneratorHealth(cpu_share=0.99, late_share=0.2, lag_p99_ms=40)
    return lambda request: late if request.rate > rate else CALM


def test_generator_limited_trial_is_repeated_twice_and_not_counted() -> None:
    asked: list[float] = []
    run = scripted(step(100), health=limited_above(100))

    def noting(request: TrialRequest) -> Trial:
        asked.append(request.rate)
        return run(request)

    found = run_search(noting)
    assert (found.outcome, found.stopped_by, found.low) == ("at_least", "generator", 80)
    assert asked.count(160) == 3


def test_always_limited_generator_leaves_the_search_undecided() -> None:
    found = run_search(scripted(step(100), health=limited_above(0)))
    assert (found.outcome, found.stopped_by) == ("undecided", "generator")
    assert "generator" in found.reason


def test_varying_steal_widens_the_interval_and_steady_steal_does_not() -> None:
    def stealing(*shares: float) -> Callable[[TrialRequest], GeneratorHealth]:
        return lambda request: GeneratorHealth(0.3, 0.0, 0.2, shares[request.seed % len(shares)])

    steady = run_search(scripted(step(300), health=stealing(0.1)))
    varying = run_search(scripted(step(300), health=stealing(0.0, 0.2)))
    assert steady.steal_share == pytest.approx(0.1)
    assert steady.steal_width == 0
    assert varying.steal_width > 0.02
    assert varying.width is not None and steady.width is not None
    assert varying.width > steady.width


def test_growing_backlog_fails_a_rate_before_arrivals_are_slow() -> None:
    patient = MeasureSettings(objective=Objective(slow_ms=10_000))
    service = Service(4, exponential(4 / 400))
    generator = VirtualGenerator(service, seed=3, slow_ms=10_000)
    found = run_search(generator.run, CapacitySearch(patient))
    assert found.outcome == "found"
    assert found.high is not None and found.high < 480


@pytest.mark.parametrize("after", range(1, 16))
def test_result_is_usable_after_every_trial(after: int) -> None:
    search, run = CapacitySearch(MeasureSettings()), scripted(step(150))
    for _ in range(after):
        request = search.next_trial()
        if request is None:
            break
        search.record(run(request))
    found = search.result()
    assert found.trials <= after
    if search.next_trial() is not None:
        assert found.stopped_by == "interrupted"
    if found.outcome == "found":
        assert found.low is not None and found.high is not None and found.low <= 150 <= 1.1 * found.high
    elif found.outcome == "at_least":
        assert found.low is not None and found.low <= 150
    else:
        assert found.outcome == "undecided" and found.reason


def test_interrupted_trial_ends_the_search_and_is_counted() -> None:
    search, run = CapacitySearch(MeasureSettings()), scripted(step(150))
    while (request := search.next_trial()) is not None:
        trial = run(request)
        if request.purpose == "search":
            trial = Trial(request, 3.0, 0.0, trial.blocks[:6], CALM, interrupted=True)
        search.record(trial)
    found = search.result()
    assert (found.outcome, found.stopped_by) == ("found", "interrupted")
    with pytest.raises(ValueError, match="has ended"):
        search.record(trial)


@pytest.mark.parametrize("recovered", [True, False])
def test_rate_that_the_service_does_not_recover_from_has_failed(recovered: bool) -> None:
    search, run = CapacitySearch(MeasureSettings()), scripted(step(1000))
    for _ in range(3):
        request = search.next_trial()
        assert request is not None
        search.record(run(request), recovered=recovered or request.rate < 40)
    assert search.progress().verdicts[-1][1] == ("passed" if recovered else "failed")
    search.stop("recovery")
    found = search.result()
    assert search.next_trial() is None and found.stopped_by == "recovery"
    assert found.outcome == ("at_least" if recovered else "found")


def test_elapsed_time_beyond_the_trials_counts_against_the_budget() -> None:
    search, run = CapacitySearch(MeasureSettings()), scripted(step(150))
    while (request := search.next_trial()) is not None:
        trial = run(request)
        search.record(trial, elapsed_s=trial.seconds + 5)
    hurried, calm = search.result(), run_search(scripted(step(150)))
    assert hurried.seconds <= 90 + 5
    assert hurried.trials < calm.trials or calm.seconds < 60


def test_progress_has_phase_verdicts_and_time() -> None:
    search, run = CapacitySearch(MeasureSettings()), scripted(step(150))
    assert search.progress().phase == "warm-up"
    phases = []
    while (request := search.next_trial()) is not None:
        phases.append(search.progress().phase)
        search.record(run(request))
    state = search.progress()
    assert phases == sorted(phases, key=["warm-up", "ramp", "search", "confirm"].index)
    assert (80.0, "passed") in state.verdicts and (160.0, "failed") in state.verdicts
    assert state.low is not None and state.high is not None and state.low < 150 < state.high
    assert state.spent_s <= state.budget_s + 0.5


def test_capacity_round_trips_through_json() -> None:
    found = run_search(scripted(step(150)))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Capacity) == found


def test_import_loads_neither_numpy_nor_scipy() -> None:
    code = "import sys, tenfold.measure.search.capacity; print({'numpy', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@given(
    shares=st.lists(st.floats(0, 1), min_size=3, max_size=30),
    health=st.lists(st.booleans(), min_size=1, max_size=7),
    budget_s=st.floats(10, 120),
)
@settings(max_examples=40, deadline=None)
def test_search_ends_within_its_budget_for_any_service(
    shares: list[float], health: list[bool], budget_s: float
) -> None:
    limited = GeneratorHealth(cpu_share=0.99, late_share=0.5, lag_p99_ms=80)
    search, spent, number = CapacitySearch(MeasureSettings(budget_s=budget_s)), 0.0, 0
    rates = []
    while (request := search.next_trial()) is not None:
        assert spent + request.duration_s <= budget_s + 1e-6
        share = shares[number % len(shares)]
        fine = health[number % len(health)]
        run = scripted(lambda rate, s=share: s, health=lambda _, f=fine: CALM if f else limited)
        trial = run(request)
        rates.append(request.rate)
        spent, number = spent + trial.seconds + trial.settled_s, number + 1
        search.record(trial)
        assert number < 200
    found = search.result()
    if found.low is not None and found.high is not None:
        assert found.low <= found.high <= max(rates)
        assert found.outcome == "found" and found.low > 0
    assert found.outcome != "undecided" or found.reason


def test_interval_is_near_the_step_of_any_monotone_service() -> None:
    """No queue has such a step: 4 % of 342 intervals missed it by more than 2 %, none by more than 11 %.

    The same services in each run, so the test fails only with a change of the search; a change that is none
    for the worse fails it once in 1,000 (6 or more of 30 at 4 %).
    """
    chance = random.Random(5)
    missed = 0
    for _ in range(30):
        capacity, floor = 2 * 2000 ** chance.random(), chance.uniform(0, 0.02)
        found = run_search(scripted(lambda rate, at=capacity, share=floor: 1.0 if rate > at else share))
        assert found.outcome == "found"
        assert found.low is not None and found.high is not None
        assert 0.85 * found.low <= capacity <= 1.15 * found.high
        missed += not 0.98 * found.low <= capacity <= 1.02 * found.high
    assert missed < 6


def test_known_capacities_agree_with_formula_and_simulation() -> None:
    assert erlang_capacity(115, 1) == pytest.approx(115 + 5 * -2.995732, rel=1e-5)
    for servers, total, rate in ((2, 300.0, 280.0), (8, 200.0, 175.0)):
        generator = VirtualGenerator(Service(servers, exponential(servers / total)), seed=5)
        trial = generator.run(TrialRequest(rate, 1500.0, "search", 1))
        assert trial.bad_share == pytest.approx(tail(rate, total / servers, servers), rel=0.25)


def sample_of_searches(each: int, *, correlated: bool = True) -> list[tuple[Case, CapacitySearch, Capacity]]:
    done = []
    for index, case in enumerate(CASES):
        for number in range(each):
            search = CapacitySearch(MeasureSettings(), correlated=correlated)
            generator = VirtualGenerator(case.service, seed=77_000 + 100 * index + number)
            done.append((case, search, run_search(generator.run, search)))
    return done


def coverage(each: int, *, correlated: bool) -> float:
    done = sample_of_searches(each, correlated=correlated)
    return sum(covers(found, case.truth) for case, _, found in done) / len(done)


@pytest.mark.guarantee(
    "the interval covers the true capacity",
    pattern="measure",
    under="queues, correlated latencies, a noisy neighbour",
    control="the same test: searches without inflation, and without confirmation, miss it more often",
)
def test_intervals_cover_the_truth() -> None:
    """A thousand are in benchmarks/capacity.py; fewer than 80 % of 60 happen once in 10,000 at 94 %."""
    done = sample_of_searches(2)
    assert all(found.outcome == "found" and found.seconds <= 93 for _, _, found in done)
    assert sum(covers(found, case.truth) for case, _, found in done) >= 0.8 * len(done)
    # Without the confirming trials: the bracket that the sequential tests leave.
    held = 0
    for case, search, _ in done:
        verdicts = search.progress().verdicts
        bisected = verdicts[: -max(1, sum(t.request.purpose == "confirm" for t in search.trials))]
        passed = max((rate for rate, verdict in bisected if verdict == "passed"), default=0.0)
        failed = min((rate for rate, verdict in bisected if verdict == "failed"), default=1e9)
        held += passed <= case.truth <= failed
    assert held < 0.75 * len(done)


def test_the_control_intervals_without_inflation_miss_the_truth() -> None:
    assert coverage(1, correlated=False) < 0.6
