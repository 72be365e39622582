from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.load.arrivals import HOLD_S, ArrivalLog, ArrivalResult, request_result
from tenfold.measure.load.schedule import poisson
from tenfold.measure.trial import Block

SLOW_S = 0.2


def total(blocks: list[Block]) -> int:
    return sum(block.offered for block in blocks)


def adds_up(block: Block) -> bool:
    return block.offered == block.good + block.slow + block.failed + block.refused + block.unsent


# Events of an arrival: a delay until a user starts it (None: never), the results of its requests,
# and how long its task takes (None: no end).
outcomes = st.tuples(
    st.one_of(st.none(), st.floats(0, 0.3)),
    st.lists(
        st.sampled_from(
            [ArrivalResult.GOOD, ArrivalResult.SLOW, ArrivalResult.REFUSED, ArrivalResult.FAILED]
        ),
        max_size=3,
    ),
    st.one_of(st.none(), st.floats(0, 2)),
)


@given(
    rate=st.floats(5, 60),
    duration_s=st.floats(0.2, 3.3),
    seed=st.integers(0, 1000),
    what=st.lists(outcomes, min_size=1, max_size=20),
)
def test_every_due_arrival_gets_exactly_one_result(
    rate: float,
    duration_s: float,
    seed: int,
    what: list[tuple[float | None, list[ArrivalResult], float | None]],
) -> None:
    due = poisson(rate=rate, duration_s=duration_s, seed=seed)
    log = ArrivalLog(due, duration_s=duration_s, slow_s=SLOW_S)
    events: list[tuple[float, int, str]] = []
    for i, at in enumerate(due):
        wait, _, takes = what[i % len(what)]
        events.append((at, i, "release"))
        if wait is not None:
            events.append((at + wait, i, "start"))
            if takes is not None:
                events.append((at + wait + takes, i, "end"))
    blocks: list[Block] = []
    for now, i, event in sorted(events):
        blocks += log.final_blocks(now)
        if event == "release":
            log.release(i)
        elif event == "start":
            log.start(i, now, free=True)
            for result in what[i % len(what)][1]:
                log.record_answer(i, result)
        else:
            log.finish(i, now)
    blocks += log.final_blocks(duration_s + SLOW_S + HOLD_S + 0.001)
    assert log.is_complete
    assert all(map(adds_up, blocks))
    assert total(blocks) + sum(block.silent for block in blocks) == len(due)
    assert [block.start_s for block in blocks] == [i * 0.5 for i in range(len(blocks))]
    assert sum(block.seconds for block in blocks) == pytest.approx(duration_s)


def test_block_is_final_as_soon_as_its_arrivals_are() -> None:
    log = ArrivalLog([0.1, 0.2, 0.6], duration_s=1.0, slow_s=SLOW_S)
    for i in (0, 1):
        log.release(i)
        log.start(i, log.due[i], free=True)
        log.record_answer(i, ArrivalResult.GOOD)
        log.finish(i, 0.3)
    assert log.final_blocks(0.49) == []
    (block,) = log.final_blocks(0.5)
    assert (block.offered, block.good, block.in_flight) == (2, 2, 0)


def test_unanswered_arrival_is_slow_and_waiting_one_unsent_slow_ms_after_the_block() -> None:
    log = ArrivalLog([0.1, 0.2], duration_s=0.5, slow_s=SLOW_S)
    log.release(0)
    log.start(0, 0.1, free=True)
    log.release(1)
    assert log.final_blocks(0.69) == []
    log.worsen(0, ArrivalResult.SLOW)
    (block,) = log.final_blocks(0.71)
    assert (block.slow, block.unsent, block.in_flight) == (1, 1, 2)
    # Later answers do not change a result.
    log.record_answer(0, ArrivalResult.FAILED)
    log.finish(0, 0.9)
    assert list(log.results()) == [ArrivalResult.SLOW, ArrivalResult.UNSENT]


def test_task_of_several_requests_holds_its_block_open_for_hold_s() -> None:
    log = ArrivalLog([0.1], duration_s=0.5, slow_s=SLOW_S)
    log.release(0)
    log.start(0, 0.1, free=True)
    log.record_answer(0, ArrivalResult.GOOD)
    assert log.final_blocks(0.5 + SLOW_S + HOLD_S - 0.01) == []
    (block,) = log.final_blocks(0.5 + SLOW_S + HOLD_S)
    assert block.good == 1


@pytest.mark.parametrize(
    ("sends", "silent", "slow"), [(None, 1, 0), (0.4, 0, 1)], ids=["sends nothing", "is not answered"]
)
def test_task_without_an_answer_is_judged_after_hold_s(sends: float | None, silent: int, slow: int) -> None:
    log = ArrivalLog([0.1], duration_s=0.5, slow_s=SLOW_S, hold_s=3.0)
    log.release(0)
    log.start(0, 0.1, free=True, sending=False)
    if sends:
        log.note_sending(0, under_way=True)
    assert log.final_blocks(0.5 + SLOW_S + 2.9) == []
    (block,) = log.final_blocks(0.5 + SLOW_S + 3.0)
    assert (block.silent, block.slow, block.offered) == (silent, slow, slow)


def test_requests_are_in_flight_and_not_tasks() -> None:
    log = ArrivalLog([0.1], duration_s=2.0, slow_s=SLOW_S)
    seen = [log.in_flight]
    log.release(0)
    seen.append(log.in_flight)  # waits for a user
    log.start(0, 0.1, free=True, sending=False)
    seen.append(log.in_flight)  # the task sleeps
    for _ in range(2):
        log.note_sending(0, under_way=True)
        seen.append(log.in_flight)
        log.record_answer(0, ArrivalResult.GOOD)
        log.note_sending(0, under_way=False)
        seen.append(log.in_flight)
    assert log.unfinished == 1
    log.finish(0, 1.0)
    assert seen == [0, 1, 0, 1, 0, 1, 0] and log.unfinished == log.in_flight == 0


def test_only_a_delay_despite_an_idle_user_counts_as_late() -> None:
    log = ArrivalLog([0.1, 0.2, 0.3], duration_s=0.5, slow_s=SLOW_S)
    for i, (lag, free) in enumerate([(0.011, True), (0.009, True), (0.1, False)]):
        log.release(i)
        log.record_answer(i, ArrivalResult.GOOD)
        log.start(i, log.due[i] + lag, free=free)
        log.finish(i, 0.45)
    (block,) = log.final_blocks(0.5)
    assert block.late == 1
    assert len(log.lags_s) == 2


def test_cut_ends_the_trial_there() -> None:
    log = ArrivalLog([0.1, 0.6, 0.7, 1.4], duration_s=2.0, slow_s=SLOW_S)
    for i in (0, 1):
        log.release(i)
        log.start(i, log.due[i], free=True)
        log.record_answer(i, ArrivalResult.GOOD)
        log.finish(i, log.due[i])
    log.cut(0.65, released=2)
    blocks = log.final_blocks(5.0)
    assert log.is_complete
    assert [block.offered for block in blocks] == [1, 1]
    assert blocks[-1].start_s + blocks[-1].seconds == pytest.approx(0.65)


def test_cut_forgets_arrivals_that_were_not_released() -> None:
    log = ArrivalLog([0.1, 0.3], duration_s=2.0, slow_s=SLOW_S)
    log.cut(0.4, released=1)
    assert log.horizon_s == pytest.approx(0.3)
    assert len(log.due) == 1


@pytest.mark.parametrize(
    ("status", "failed", "ms", "result"),
    [
        (200, False, 10, ArrivalResult.GOOD),
        (200, False, 200.0, ArrivalResult.GOOD),
        (200, False, 200.001, ArrivalResult.SLOW),
        (200, True, 10, ArrivalResult.FAILED),
        (500, True, 10, ArrivalResult.FAILED),
        (0, True, 10, ArrivalResult.FAILED),
        (404, False, 10, ArrivalResult.GOOD),  # the locustfile called it a success
        (503, False, 1, ArrivalResult.REFUSED),  # whatever the locustfile calls it
        (429, True, 1, ArrivalResult.REFUSED),
    ],
)
def test_request_result(status: int, failed: bool, ms: float, result: ArrivalResult) -> None:
    assert request_result(status, failed=failed, corrected_ms=ms, slow_ms=200.0) == result
