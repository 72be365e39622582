from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.load.arrivals import HOLD_S, Fate, Ledger, fate_of
from tenfold.measure.load.schedule import poisson
from tenfold.measure.trial import Block

SLOW_S = 0.2


def total(blocks: list[Block]) -> int:
    return sum(block.offered for block in blocks)


def adds_up(block: Block) -> bool:
    return block.offered == block.good + block.slow + block.failed + block.refused + block.unsent


# What a service and a crew can do to an arrival: a delay until it is handed over (None: never), the fates
# of its requests, and how long its task takes (None: no end).
outcomes = st.tuples(
    st.one_of(st.none(), st.floats(0, 0.3)),
    st.lists(st.sampled_from([Fate.GOOD, Fate.SLOW, Fate.REFUSED, Fate.FAILED]), max_size=3),
    st.one_of(st.none(), st.floats(0, 2)),
)


@given(
    rate=st.floats(5, 60),
    duration_s=st.floats(0.2, 3.3),
    seed=st.integers(0, 1000),
    what=st.lists(outcomes, min_size=1, max_size=20),
)
def test_every_due_arrival_gets_exactly_one_verdict(
    rate: float, duration_s: float, seed: int, what: list[tuple[float | None, list[Fate], float | None]]
) -> None:
    due = poisson(rate=rate, duration_s=duration_s, seed=seed)
    ledger = Ledger(due, duration_s=duration_s, slow_s=SLOW_S)
    events: list[tuple[float, int, str]] = []
    for i, at in enumerate(due):
        wait, _, takes = what[i % len(what)]
        events.append((at, i, "release"))
        if wait is not None:
            events.append((at + wait, i, "hand"))
            if takes is not None:
                events.append((at + wait + takes, i, "end"))
    blocks: list[Block] = []
    for now, i, event in sorted(events):
        blocks += ledger.blocks(now)
        if event == "release":
            ledger.release(i)
        elif event == "hand":
            ledger.hand(i, now, free=True)
            for fate in what[i % len(what)][1]:
                ledger.answer(i, fate)
        else:
            ledger.end(i, now)
    blocks += ledger.blocks(duration_s + SLOW_S + HOLD_S + 0.001)
    assert ledger.complete
    assert all(map(adds_up, blocks))
    assert total(blocks) == len(due)
    assert [block.start_s for block in blocks] == [i * 0.5 for i in range(len(blocks))]
    assert sum(block.seconds for block in blocks) == pytest.approx(duration_s)


def test_a_block_is_final_as_soon_as_its_arrivals_are() -> None:
    ledger = Ledger([0.1, 0.2, 0.6], duration_s=1.0, slow_s=SLOW_S)
    for i in (0, 1):
        ledger.release(i)
        ledger.hand(i, ledger.due[i], free=True)
        ledger.end(i, 0.3)
    assert ledger.blocks(0.49) == []
    (block,) = ledger.blocks(0.5)
    assert (block.offered, block.good, block.in_flight) == (2, 2, 0)


def test_unanswered_is_slow_and_unsent_is_unsent_slow_ms_after_the_block() -> None:
    ledger = Ledger([0.1, 0.2], duration_s=0.5, slow_s=SLOW_S)
    ledger.release(0)
    ledger.hand(0, 0.1, free=True)
    ledger.release(1)
    assert ledger.blocks(0.69) == []
    (block,) = ledger.blocks(0.71)
    assert (block.slow, block.unsent, block.in_flight) == (1, 1, 2)
    # What happens later does not change a verdict.
    ledger.answer(0, Fate.FAILED)
    ledger.end(0, 0.9)
    assert list(ledger.fates()) == [Fate.SLOW, Fate.UNSENT]


def test_a_task_of_several_requests_holds_its_block_open_for_a_while() -> None:
    ledger = Ledger([0.1], duration_s=0.5, slow_s=SLOW_S)
    ledger.release(0)
    ledger.hand(0, 0.1, free=True)
    ledger.answer(0, Fate.GOOD)
    assert ledger.blocks(0.5 + SLOW_S + HOLD_S - 0.01) == []
    (block,) = ledger.blocks(0.5 + SLOW_S + HOLD_S)
    assert block.good == 1


def test_late_is_only_what_a_free_user_did_not_get_in_time() -> None:
    ledger = Ledger([0.1, 0.2, 0.3], duration_s=0.5, slow_s=SLOW_S)
    for i, (lag, free) in enumerate([(0.011, True), (0.009, True), (0.1, False)]):
        ledger.release(i)
        ledger.hand(i, ledger.due[i] + lag, free=free)
        ledger.end(i, 0.45)
    (block,) = ledger.blocks(0.5)
    assert block.late == 1
    assert len(ledger.lags_s) == 2


def test_a_cut_trial_ends_where_it_was_cut() -> None:
    ledger = Ledger([0.1, 0.6, 0.7, 1.4], duration_s=2.0, slow_s=SLOW_S)
    for i in (0, 1):
        ledger.release(i)
        ledger.hand(i, ledger.due[i], free=True)
        ledger.end(i, ledger.due[i])
    ledger.cut(0.65, released=2)
    blocks = ledger.blocks(5.0)
    assert ledger.complete
    assert [block.offered for block in blocks] == [1, 1]
    assert blocks[-1].start_s + blocks[-1].seconds == pytest.approx(0.65)


def test_a_cut_that_comes_late_leaves_out_what_was_not_released() -> None:
    ledger = Ledger([0.1, 0.3], duration_s=2.0, slow_s=SLOW_S)
    ledger.cut(0.4, released=1)
    assert ledger.horizon_s == pytest.approx(0.3)
    assert len(ledger.due) == 1


@pytest.mark.parametrize(
    ("status", "failed", "ms", "fate"),
    [
        (200, False, 10, Fate.GOOD),
        (200, False, 200.0, Fate.GOOD),
        (200, False, 200.001, Fate.SLOW),
        (200, True, 10, Fate.FAILED),
        (500, True, 10, Fate.FAILED),
        (0, True, 10, Fate.FAILED),
        (404, False, 10, Fate.GOOD),  # the locustfile called it a success
        (503, False, 1, Fate.REFUSED),  # whatever the locustfile calls it
        (429, True, 1, Fate.REFUSED),
    ],
)
def test_fate_of(status: int, failed: bool, ms: float, fate: Fate) -> None:
    assert fate_of(status, failed=failed, corrected_ms=ms, slow_ms=200.0) == fate
