"""A breaker opens on failures, probes with one call, and what came before neither holds nor closes it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tenfold.breaker import Breaker
from tenfold.errors import BreakerOpenError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(breaker: Breaker, clock: Clock, script: str) -> str:
    """``+`` and ``-`` are calls that succeed and fail, ``?`` one whose outcome is unknown, ``.`` is a second.

    Tells for each call whether it was let through: ``y`` or ``n``.
    """
    told = ""
    for step in script:
        if step == ".":
            clock.now += 1
            continue
        ticket = breaker.admit()
        told += "n" if ticket is None else "y"
        if ticket is not None:
            breaker.settle(ticket, {"+": True, "-": False, "?": None}[step])
    return told


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("+++++", "yyyyy"),
        ("---+", "yyyn"),  # open
        ("--+--+", "yyyyyy"),  # not in a row
        ("---.+", "yyyn"),  # not yet cool
        ("---..+++", "yyyyyy"),  # the probe closes it
        ("---..-+..+", "yyyyny"),  # the probe opens it again
        ("---..?++", "yyyyyy"),  # an unknown outcome lets the next one probe
        ("--?-", "yyyy"),  # ... and counts as nothing
        ("---..+--+", "yyyyyyy"),  # what was before is forgotten once it closed
    ],
)
def test_what_goes_through(script: str, told: str) -> None:
    clock = Clock()
    assert run(Breaker(failures=3, cool_down_s=2, jitter=0, ratio=2, clock=clock), clock, script) == told


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("-+-+-+-+-+-+", "yyyyyyyyynnn"),  # half of at least eight: open at the ninth
        ("-++-++-++-++", "yyyyyyyyyyyy"),  # a third is not half
        ("-+-+-+" + ".........." + "-+-+-+", "yyyyyyyyyyyy"),  # too long ago to count together
    ],
)
def test_a_share_of_failures_opens_it(script: str, told: str) -> None:
    clock = Clock()
    breaker = Breaker(failures=99, ratio=0.5, least_calls=8, window_s=4, jitter=0, clock=clock)
    assert run(breaker, clock, script) == told


def test_one_probe_at_a_time_until_it_is_overdue() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, cool_down_s=2, jitter=0, clock=clock)
    run(breaker, clock, "-..")
    lost = breaker.admit()
    assert lost is not None
    assert breaker.admit() is None
    clock.now += 2
    second = breaker.admit()
    assert second is not None
    breaker.settle(lost, True)  # too late to say anything
    assert not breaker.closed
    breaker.settle(second, True)
    assert breaker.closed


def test_what_was_asked_before_it_opened_does_not_close_it() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, cool_down_s=2, jitter=0, clock=clock)
    early = breaker.admit()
    assert early is not None
    run(breaker, clock, "-..")
    assert breaker.admit() is not None
    breaker.settle(early, True)
    assert not breaker.closed
    assert breaker.admit() is None


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 2.0), (0.5, 2.5), (1.0, 3.0)])
def test_the_cool_down_is_lengthened_by_chance(chance: float, wait: float) -> None:
    clock = Clock()
    breaker = Breaker(failures=1, cool_down_s=2, jitter=0.5, clock=clock, chance=lambda: chance)
    run(breaker, clock, "-")
    assert breaker.wait_s == pytest.approx(wait)
    clock.now += wait
    assert breaker.wait_s == 0
    assert breaker.admit() is not None


def test_asking_counts_the_errors_named_and_no_others() -> None:
    breaker = Breaker(failures=2, ratio=2, cool_down_s=60)
    for error in (ValueError, OSError, asyncio.CancelledError, OSError):
        with pytest.raises(error), breaker.asking(OSError):
            raise error
    with pytest.raises(BreakerOpenError, match=r"not asked for another \d+\.\d s"), breaker.asking(OSError):
        pytest.fail("it was asked")


def test_threads_share_one() -> None:
    """No probe is handed out twice, whoever asks."""
    clock = Clock()
    breaker = Breaker(failures=1, cool_down_s=1, jitter=0, clock=clock)
    run(breaker, clock, "-.")
    tickets: list[int | None] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        tickets.extend(breaker.admit() for _ in range(200))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ticket is not None for ticket in tickets) == 1


class Machine(RuleBasedStateMachine):
    """Calls that overlap, are lost or late, in any order: it never stays open for good."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(failures=3, ratio=2, cool_down_s=2, jitter=0, clock=self.clock)
        self.under_way: list[int] = []

    @rule()
    def ask(self) -> None:
        if (ticket := self.breaker.admit()) is not None:
            self.under_way.append(ticket)

    @rule(data=st.data(), outcome=st.sampled_from([True, False]))
    def answer(self, data: st.DataObject, outcome: bool) -> None:
        if self.under_way:
            at = data.draw(st.integers(0, len(self.under_way) - 1))
            self.breaker.settle(self.under_way.pop(at), outcome)

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def lose(self) -> None:
        self.under_way.clear()

    @invariant()
    def an_open_one_always_ends(self) -> None:
        assert self.breaker.wait_s <= 2

    def teardown(self) -> None:
        self.clock.now += 2
        assert run(self.breaker, self.clock, "+") == "y"
        assert self.breaker.closed


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, deadline=None)
