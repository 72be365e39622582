"""Which replica gets a read."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.database.choice import CHOICES, Choice, Load, order


def first(loads: list[Load], choice: Choice, *, turn: int = 0, seed: int = 0) -> int:
    return order(loads, choice=choice, turn=turn, now=1.0, below=random.Random(seed).randrange)[0]


@given(st.integers(0, 9), st.sampled_from(CHOICES), st.integers(0, 10**6), st.integers(0, 10**6))
def test_every_replica_is_in_the_order_once(count: int, choice: Choice, turn: int, seed: int) -> None:
    loads = [Load(in_flight=seed % (n + 1)) for n in range(count)]
    below = random.Random(seed).randrange
    assert sorted(order(loads, choice=choice, turn=turn, now=1.0, below=below)) == list(range(count))


def test_round_robin_takes_turns() -> None:
    assert [first([Load(), Load(), Load()], "round-robin", turn=n) for n in range(6)] == [0, 1, 2, 0, 1, 2]


def test_random_knows_no_load() -> None:
    loads = [Load(in_flight=100), Load()]
    assert {first(loads, "random", seed=seed) for seed in range(20)} == {0, 1}


@pytest.mark.parametrize("busy", [Load(in_flight=5), Load(average_s=0.1, _at=1.0)])
def test_of_two_the_less_busy_one(busy: Load) -> None:
    for loads, least in (([busy, Load()], 1), ([Load(), busy], 0)):
        assert {first(loads, "least", seed=seed) for seed in range(20)} == {least}


def test_the_busiest_of_many_is_never_first_and_no_other_gets_all() -> None:
    loads = [Load(in_flight=n) for n in range(5)]
    firsts = [first(loads, "least", seed=seed) for seed in range(500)]
    assert set(firsts) == {0, 1, 2, 3}
    assert firsts.count(0) < 300


def test_a_slow_server_that_gets_no_reads_is_tried_again() -> None:
    load = Load()
    load.took(2.0, now=10.0)
    assert load.cost(10.0) > 50 * Load().cost(0.0)
    assert load.cost(100.0) == pytest.approx(Load().cost(0.0), rel=0.01)


@given(st.lists(st.floats(0.0001, 10), min_size=1, max_size=50))
def test_the_average_stays_among_what_was_seen(times: list[float]) -> None:
    load = Load()
    for number, seconds in enumerate(times):
        load.took(seconds, now=0.01 * number)
    seen = [0.001, *times]
    assert min(seen) * 0.999 <= load.average_s <= max(seen) * 1.001
