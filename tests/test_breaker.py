"""A breaker opens on failures, probes with one call, and ignores outcomes of earlier calls."""

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
    """Run calls that succeed ``+``, fail ``-`` or have an unknown outcome ``?``; ``.`` lets a second pass.

    Returns for each call whether it was admitted: ``y`` or ``n``.
    """
    admitted = ""
    for step in script:
        if step == ".":
            clock.now += 1
            continue
        ticket = breaker.admit()
        admitted += "n" if ticket is None else "y"
        if ticket is not None:
            breaker.record(ticket, {"+": True, "-": False, "?": None}[step])
    return admitted


@pytest.mark.control(
    "a server that is down is probed by one call at a time", "while closed, every call is admitted"
)
@pytest.mark.parametrize(
    ("script", "admitted"),
    [
        ("+++++", "yyyyy"),
        ("---+", "yyyn"),  # open
        ("--+--+", "yyyyyy"),  # not in a row
        ("---.+", "yyyn"),  # not yet cool
        ("---..+++", "yyyyyy"),  # the probe closes it
        ("---..-+..+", "yyyyny"),  # the probe opens it again
        ("---..?++", "yyyyyy"),  # an unknown outcome lets the next one probe
        ("--?-", "yyyy"),  # ... and does not count
        ("---..+--+", "yyyyyyy"),  # earlier failures are forgotten once it closed
    ],
)
def test_admitted_calls(script: str, admitted: str) -> None:
    clock = Clock()
    assert run(Breaker(failures=3, cool_down_s=2, jitter=0, ratio=2, clock=clock), clock, script) == admitted


@pytest.mark.parametrize(
    ("script", "admitted"),
    [
        ("-+-+-+-+-+-+", "yyyyyyyyynnn"),  # half of at least eight: open at the ninth
        ("-++-++-++-++", "yyyyyyyyyyyy"),  # a third is not half
        ("-+-+-+" + ".........." + "-+-+-+", "yyyyyyyyyyyy"),  # too long ago to count together
    ],
)
def test_share_of_failures_opens_it(script: str, admitted: str) -> None:
    clock = Clock()
    breaker = Breaker(failures=99, ratio=0.5, min_calls=8, window_s=4, jitter=0, clock=clock)
    assert run(breaker, clock, script) == admitted


def test_one_probe_at_a_time_until_it_is_overdue() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, cool_down_s=2, jitter=0, clock=clock)
    run(breaker, clock, "-..")
    overdue = breaker.admit()
    assert overdue is not None
    assert breaker.admit() is None
    clock.now += 2
    second = breaker.admit()
    assert second is not None
    breaker.record(overdue, True)  # too late to count
    assert not breaker.is_closed
    breaker.record(second, True)
    assert breaker.is_closed


@pytest.mark.guarantee("a server that is down is probed by one call at a time")
def test_outcome_of_a_call_admitted_before_it_opened_does_not_close_it() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, cool_down_s=2, jitter=0, clock=clock)
    early = breaker.admit()
    assert early is not None
    run(breaker, clock, "-..")
    assert breaker.admit() is not None
    breaker.record(early, True)
    assert not breaker.is_closed
    assert breaker.admit() is None


@pytest.mark.parametrize(("fraction", "wait_s"), [(0.0, 2.0), (0.5, 2.5), (1.0, 3.0)])
def test_cool_down_is_lengthened_at_random(fraction: float, wait_s: float) -> None:
    clock = Clock()
    breaker = Breaker(failures=1, cool_down_s=2, jitter=0.5, clock=clock, random_fraction=lambda: fraction)
    run(breaker, clock, "-")
    assert breaker.wait_s == pytest.approx(wait_s)
    clock.now += wait_s
    assert breaker.wait_s == 0
    assert breaker.admit() is not None


def test_guard_counts_only_the_named_errors() -> None:
    breaker = Breaker(failures=2, ratio=2, cool_down_s=60)
    for error in (ValueError, OSError, asyncio.CancelledError, OSError):
        with pytest.raises(error), breaker.guard(OSError):
            raise error
    with pytest.raises(BreakerOpenError, match=r"not asked for another \d+\.\d s"), breaker.guard(OSError):
        pytest.fail("the call was made")


@pytest.mark.guarantee(
    "a server that is down is probed by one call at a time",
    pattern="signing",
    under="threads, lost and late outcomes",
)
def test_concurrent_threads_get_one_probe() -> None:
    """No probe is admitted twice."""
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
        self.running: list[int] = []

    @rule()
    def start(self) -> None:
        if (ticket := self.breaker.admit()) is not None:
            self.running.append(ticket)

    @rule(data=st.data(), outcome=st.sampled_from([True, False]))
    def finish(self, data: st.DataObject, outcome: bool) -> None:
        if self.running:
            at = data.draw(st.integers(0, len(self.running) - 1))
            self.breaker.record(self.running.pop(at), outcome)

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def lose(self) -> None:
        self.running.clear()

    @invariant()
    def open_state_is_bounded(self) -> None:
        assert self.breaker.wait_s <= 2

    def teardown(self) -> None:
        self.clock.now += 2
        assert run(self.breaker, self.clock, "+") == "y"
        assert self.breaker.is_closed


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, deadline=None)
