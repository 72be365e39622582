"""Timeouts on one timer do what asyncio.timeout does."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Awaitable, Callable

import pytest

import tenfold.sessions.stores.connections
from tenfold.sessions.stores.connections import Limit, Timeouts


async def limited(timeouts: Timeouts, seconds: float) -> str:
    try:
        with timeouts.limit():
            await asyncio.sleep(seconds)
    except TimeoutError:
        return "late"
    return "in time"


def test_each_call_has_its_own_time() -> None:
    async def run() -> list[str]:
        timeouts, calls = Timeouts(0.2), []
        for seconds in (0.0, 5.0, 0.05, 5.0, 0.0):
            calls.append(asyncio.ensure_future(limited(timeouts, seconds)))
            await asyncio.sleep(0.04)
        return await asyncio.gather(*calls)

    assert asyncio.run(run()) == ["in time", "late", "in time", "late", "in time"]


def test_a_call_after_the_timer_rang_for_nothing_is_limited_too() -> None:
    async def run() -> list[str]:
        timeouts = Timeouts(0.05)
        first = await limited(timeouts, 0)
        await asyncio.sleep(0.1)
        return [first, await limited(timeouts, 5), await limited(timeouts, 0), await limited(timeouts, 5)]

    assert asyncio.run(run()) == ["in time", "late", "in time", "late"]


def test_another_event_loop_has_timeouts_too() -> None:
    timeouts = Timeouts(0.05)
    for _ in range(3):
        assert asyncio.run(limited(timeouts, 5)) == "late"
        assert asyncio.run(limited(timeouts, 0)) == "in time"


async def cancelled_by_somebody(limit: Callable[[], Awaitable[str]]) -> str:
    task = asyncio.ensure_future(limit())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return "cancelled"


def test_a_cancellation_is_no_timeout() -> None:
    timeouts = Timeouts(0.2)
    assert asyncio.run(cancelled_by_somebody(lambda: limited(timeouts, 5))) == "cancelled"


def test_a_cancellation_at_the_same_moment_wins() -> None:
    async def run() -> None:
        timeouts = Timeouts(0.05)
        task = asyncio.ensure_future(limited(timeouts, 5))
        await asyncio.sleep(0)
        time.sleep(0.1)  # due, and cancelled before the loop can notice
        asyncio.get_running_loop().call_soon(task.cancel)
        asyncio.get_running_loop().call_soon(timeouts._ring, asyncio.get_running_loop())
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_within_another_timeout_the_earlier_one_tells() -> None:
    async def run(outer: float, inner: float) -> str:
        try:
            async with asyncio.timeout(outer):
                return await limited(Timeouts(inner), 5)
        except TimeoutError:
            return "outer"

    assert asyncio.run(run(0.02, 1)) == "outer"
    assert asyncio.run(run(1, 0.02)) == "late"


def test_the_task_goes_on_after_its_timeout() -> None:
    async def run() -> int:
        assert await limited(Timeouts(0.02), 5) == "late"
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task
        return task.cancelling()

    assert asyncio.run(run()) == 0


def test_how_late_it_was_noticed_tells_of_the_loop() -> None:
    async def run() -> Limit:
        with pytest.raises(TimeoutError), Timeouts(0.05).limit() as limit:
            asyncio.get_running_loop().call_soon(time.sleep, 0.2)
            await asyncio.sleep(5)
        return limit

    late_s = asyncio.run(run()).late_s
    assert late_s is not None
    assert late_s > 0.1


def arrived_while_the_loop_was_held_up() -> str:
    """What becomes of an answer that came in time, into a loop that noticed only when it was too late."""

    async def run() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        loop.add_reader(reader, lambda: answer.set_result(reader.recv(9).decode()))

        def held_up() -> None:
            writer.send(b"answer")
            time.sleep(0.2)

        loop.call_soon(held_up)
        try:
            with Timeouts(0.05).limit():
                return await answer
        except TimeoutError:
            return "late"
        finally:
            loop.remove_reader(reader)
            reader.close()
            writer.close()

    return asyncio.run(run())


def test_what_arrived_while_the_loop_was_held_up_is_taken() -> None:
    assert arrived_while_the_loop_was_held_up() == "answer"


def test_the_control_without_grace_it_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenfold.sessions.stores.connections, "STALL_S", math.inf)
    assert arrived_while_the_loop_was_held_up() == "late"


def test_one_timer_serves_all() -> None:
    async def run() -> int:
        timeouts, timers = Timeouts(5), 0
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(*arguments: object, **options: object) -> asyncio.TimerHandle:
            nonlocal timers
            timers += 1
            return call_at(*arguments, **options)

        loop.call_at = counted
        await asyncio.gather(*(limited(timeouts, 0) for _ in range(500)))
        return timers

    assert asyncio.run(run()) == 1
