"""Simulations: the queue, starting instances, limits, and scalers that flap or starve."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.autoscaling.hpa import Behavior, Hpa, PolicyRule, ScalingRules
from tenfold.autoscaling.manifests import Metric, Scaler
from tenfold.autoscaling.policies import (
    cheapest_change,
    first_number,
    hpa_policy,
    oracle,
    seconds_to_reach,
    static_peak,
    target_rate,
)
from tenfold.autoscaling.proposals import Tolerance
from tenfold.autoscaling.settings import AutoscalingSettings
from tenfold.autoscaling.simulation import Observation, Outcome, Service, simulate
from tenfold.autoscaling.traces import generate_trace
from tenfold.errors import SettingsError

SERVICE = Service(instance_rps=100, cpu=1000, cpu_request=1000, start_s=30)
SCALER = AutoscalingSettings(memory_percent=0).scaler("web")
CPU = SCALER.metrics[0]
RATE = Metric(source="Pods", name="http_requests", kind="AverageValue", target=70_000)


def through(scaler: Scaler, rates: list[float], service: Service = SERVICE) -> Outcome:
    return simulate(
        scaler.name, rates, service, hpa_policy(scaler, service), start=first_number(scaler, rates, service)
    )


def fixed(count: int, rates: list[float], service: Service = SERVICE) -> Outcome:
    return simulate("fixed", rates, service, lambda seen: (count, None), start=count)


def test_requests_are_late_while_the_queue_takes_longer_than_the_objective() -> None:
    # 100/s beyond one instance's 100/s: the queue of 20, 0.2 s, is reached after a fifth of a second.
    assert fixed(1, [100.0]).late_share == 0
    assert fixed(1, [200.0]).lates == [pytest.approx((15 - 0.2) / 15)]
    # It is never longer than clients wait, 10 s or 1000 requests, and takes 20 s to be worked off.
    late = fixed(1, [200.0] * 10 + [50.0] * 3).lates
    assert late[9] == 1 and late[10] == 1
    assert late[11] == pytest.approx((980 / 50 - 15) / 15)
    assert late[12] == 0


def test_instances_do_no_work_before_they_are_ready_and_cost_from_their_start() -> None:
    def grow(seen: Observation) -> tuple[int, None]:
        seen_numbers.append((seen.ready, seen.starting, seen.pending))
        return 3, None

    seen_numbers: list[tuple[int, int, int]] = []
    found = simulate("grow", [0.0] * 6, SERVICE, grow, start=1)
    assert seen_numbers == [(1, 0, 0), (1, 2, 0), (3, 0, 0), (3, 0, 0), (3, 0, 0), (3, 0, 0)]
    assert found.replica_hours == pytest.approx((1 + 5 * 3) * 15 / 3600)
    seen_numbers.clear()
    simulate("grow", [0.0] * 9, replace(SERVICE, pods_per_node=2, node_start_s=60), grow, start=1)
    assert seen_numbers[1:7] == [(1, 0, 2)] * 3 + [(1, 2, 0)] * 2 + [(3, 0, 0)]


def test_what_is_not_ready_yet_ends_first() -> None:
    numbers = iter([6, 6, 2, 2, 2, 2])
    seen_numbers = []

    def shrink(seen: Observation) -> tuple[int, None]:
        seen_numbers.append((seen.ready, seen.starting))
        return next(numbers), None

    simulate("shrink", [0.0] * 6, replace(SERVICE, start_s=600), shrink, start=3)
    assert seen_numbers == [(3, 0), (3, 3), (3, 3), (2, 0), (2, 0), (2, 0)]


def test_instances_beyond_the_database_s_connections_do_no_work() -> None:
    found = fixed(4, [300.0] * 10, replace(SERVICE, most_instances=2))
    assert found.late_share > 0.5
    assert found.capped_s == 150
    assert fixed(4, [300.0] * 10).late_share == 0


def test_scaler_follows_a_daily_trace_for_hardly_more_than_an_oracle() -> None:
    rates = generate_trace("daily", peak=3000, days=2)
    each = target_rate(SCALER, SERVICE)
    assert each == 70
    own = through(SCALER, rates)
    best = simulate("oracle", rates, SERVICE, oracle(rates, each, SERVICE, least=3, most=100), start=10)
    peak = simulate("peak", rates, SERVICE, static_peak(rates, each), start=50)
    assert own.late_share <= best.late_share + 0.001
    assert own.replica_hours < 1.25 * best.replica_hours < peak.replica_hours


def test_the_control_a_scaler_that_starves_and_one_that_flaps_are_seen() -> None:
    rates = generate_trace("daily", peak=3000, days=1)
    starves = replace(SCALER, hpa=Hpa(min_replicas=3, max_replicas=20))
    assert through(starves, rates).late_share > 0.1
    at_once = ScalingRules((PolicyRule("Percent", 100, 15),), 0.0)
    hpa = Hpa(min_replicas=3, max_replicas=100, behavior=Behavior(at_once, at_once))
    flaps = replace(SCALER, tolerance=Tolerance(0.0, 0.0), hpa=hpa)
    assert len(through(flaps, rates).changes) > 5 * len(through(SCALER, rates).changes)


def test_flash_crowd_is_late_by_the_scaler_s_rates_and_the_change_that_mends_it_is_found() -> None:
    rates = generate_trace("flash", peak=2500, days=0.5)
    # A metric from outside sees what came; CPU is full at what is served, and asks for less.
    scaler = replace(SCALER, metrics=(replace(RATE, source="External"),))
    found = through(scaler, rates)
    assert found.late_share > 0.01
    assert any(one.decision and one.decision.limited == "ScaleUpLimit" for one in found.changes)
    change = cheapest_change(scaler, rates, SERVICE)
    assert change is not None
    what, changed, outcome = change
    assert what.startswith("minReplicas: ")
    assert outcome.late_share <= 0.001 < found.late_share
    fewer = replace(changed, hpa=replace(changed.hpa, min_replicas=changed.hpa.min_replicas - 1))
    assert through(fewer, rates).late_share > 0.001


@pytest.mark.parametrize(
    "metric",
    [CPU, replace(CPU, kind="AverageValue", target=700), RATE, replace(RATE, source="External")],
)
def test_every_kind_of_metric_follows_the_rate(metric: Metric) -> None:
    found = through(replace(SCALER, metrics=(metric,)), [300.0] * 20 + [700.0] * 400)
    assert found.replicas[10] in (4, 5)
    assert found.replicas[-1] in (10, 11)


def test_scale_up_that_is_too_slow_is_left_out_where_that_is_enough() -> None:
    slow = Behavior(up=ScalingRules((PolicyRule("Pods", 1, 60),), 60))
    scaler = replace(
        SCALER, metrics=(replace(RATE, source="External"),), hpa=Hpa(max_replicas=100, behavior=slow)
    )
    rates = [500.0] * 40 + [500.0 + 60 * step for step in range(100)] + [6440.0] * 20 + [500.0] * 2000
    assert through(scaler, rates).late_share > 0.01
    change = cheapest_change(scaler, rates, SERVICE)
    assert change is not None
    assert change[0] == "behavior.scaleUp: left out"


def test_cpu_that_cannot_rise_beyond_the_tolerance_never_scales_up() -> None:
    saturated = replace(SCALER, metrics=(replace(CPU, target=95),))
    assert through(saturated, [400.0] * 10 + [900.0] * 100).replicas[-1] == 5


def test_metric_that_is_no_rate_is_refused_unless_it_is_named() -> None:
    scaler = replace(SCALER, kind="ScaledObject", metrics=(replace(RATE, name="widgets"),))
    with pytest.raises(SettingsError, match="'widgets' is neither cpu nor memory"):
        hpa_policy(scaler, SERVICE)
    hpa_policy(scaler, SERVICE, rate_metric="widgets")


def test_scaled_object_goes_to_zero_and_comes_back() -> None:
    scaler = replace(SCALER, kind="ScaledObject", from_zero=True, cooldown_s=60.0, hpa=Hpa(max_replicas=10))
    scaler = replace(scaler, metrics=(replace(RATE, source="External"),))
    found = through(scaler, [0.0] * 40 + [50.0] * 20)
    assert found.replicas[20] == 0
    assert found.replicas[-1] == 1


def test_time_to_the_most_replicas() -> None:
    assert seconds_to_reach(SCALER, 100) == 525
    assert seconds_to_reach(replace(SCALER, hpa=Hpa(max_replicas=100)), 100) == 75  # 1 4 8 16 32 64 100
    never = Behavior(up=ScalingRules((PolicyRule("Pods", 1, 15),), 0, "Disabled"))
    assert seconds_to_reach(replace(SCALER, hpa=Hpa(max_replicas=9, behavior=never)), 9) == float("inf")


@given(
    rates=st.lists(st.floats(0, 5000), min_size=1, max_size=60),
    more=st.integers(0, 20),
    count=st.integers(1, 40),
)
def test_more_instances_are_never_later(rates: list[float], more: int, count: int) -> None:
    assert fixed(count + more, rates).late_share <= fixed(count, rates).late_share + 1e-9


@given(rates=st.lists(st.floats(0, 20_000), min_size=1, max_size=80), start_s=st.floats(0, 300))
def test_numbers_stay_within_the_scaler_s_bounds(rates: list[float], start_s: float) -> None:
    found = through(SCALER, rates, replace(SERVICE, start_s=start_s, pods_per_node=7))
    assert all(3 <= number <= 100 for number in found.replicas)
    assert all(0 <= late <= 1 for late in found.lates)
    assert 0 <= found.late_share <= 1 + 1e-9
