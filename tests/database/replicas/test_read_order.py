"""The order in which replicas are asked for a read."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.database.replicas.servers import CHOICES, Choice, ServerLoad, read_order


def first(loads: list[ServerLoad], choice: Choice, *, turn: int = 0, seed: int = 0) -> int:
    return read_order(loads, choice=choice, turn=turn, now=1.0, below=random.Random(seed).randrange)[0]


@given(st.integers(0, 9), st.sampled_from(CHOICES), st.integers(0, 10**6), st.integers(0, 10**6))
def test_every_replica_is_in_the_order_once(count: int, choice: Choice, turn: int, seed: int) -> None:
    loads = [ServerLoad(in_flight=seed % (n + 1)) for n in range(count)]
    below = random.Random(seed).randrange
    assert sorted(read_order(loads, choice=choice, turn=turn, now=1.0, below=below)) == list(range(count))


def test_round_robin_takes_turns() -> None:
    assert [first([ServerLoad(), ServerLoad(), ServerLoad()], "round-robin", turn=n) for n in range(6)] == [
        0,
        1,
        2,
        0,
        1,
        2,
    ]


def test_random_ignores_load() -> None:
    loads = [ServerLoad(in_flight=100), ServerLoad()]
    assert {first(loads, "random", seed=seed) for seed in range(20)} == {0, 1}


@pytest.mark.parametrize("busy", [ServerLoad(in_flight=5), ServerLoad(average_s=0.1, _at=1.0)])
def test_least_takes_the_less_busy_of_two(busy: ServerLoad) -> None:
    for loads, least in (([busy, ServerLoad()], 1), ([ServerLoad(), busy], 0)):
        assert {first(loads, "least", seed=seed) for seed in range(20)} == {least}


def test_the_busiest_of_many_is_never_first_and_no_other_gets_all() -> None:
    loads = [ServerLoad(in_flight=2**n) for n in range(5)]
    firsts = [first(loads, "least", seed=seed) for seed in range(500)]
    assert set(firsts) == {0, 1, 2, 3}
    assert firsts.count(0) < 300


def test_small_differences_do_not_move_reads() -> None:
    loads = [ServerLoad(average_s=0.00030, _at=1.0), ServerLoad(average_s=0.00035, _at=1.0)]
    firsts = [first(loads, "least", seed=seed) for seed in range(200)]
    assert 60 < firsts.count(0) < 140


def test_a_slow_server_that_gets_no_reads_is_tried_again() -> None:
    load, other = ServerLoad(), ServerLoad(average_s=0.0003, _at=10.0)
    for number in range(20):
        load.record_duration(2.0, now=10.0 + number / 10)
    other.record_duration(0.0003, now=12.0)
    assert load.cost(12.0) > 100 * other.cost(12.0)
    other.record_duration(0.0003, now=25.0)
    assert load.cost(25.0) < other.cost(25.0)


def test_one_slow_statement_hardly_moves_the_average() -> None:
    load = ServerLoad()
    load.record_duration(0.001, now=1.0)
    load.record_duration(0.010, now=1.001)
    assert load.average_s < 0.002
    load.record_duration(0.002, now=20.0)
    assert load.average_s == pytest.approx(0.002)


@given(st.lists(st.floats(0.0001, 10), min_size=1, max_size=50))
def test_average_stays_within_the_samples(times: list[float]) -> None:
    load = ServerLoad()
    for number, seconds in enumerate(times):
        load.record_duration(seconds, now=0.01 * number)
    seen = [0.001, *times]
    assert min(seen) * 0.999 <= load.average_s <= max(seen) * 1.001
