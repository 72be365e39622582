"""Deadlines of outgoing calls, and the retry budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.deadlines import RetryBudget, deadline
from tenfold.errors import DeadlineExceededError
from tenfold.overload.httpx import propagate_deadline, propagate_deadline_async


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]


def test_outgoing_calls_end_with_the_request_and_say_so() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    with httpx.Client(
        transport=httpx.MockTransport(answer), timeout=60, event_hooks={"request": [propagate_deadline]}
    ) as client:
        client.get("http://other/")
        with deadline(2):
            client.get("http://other/")
            client.get("http://other/", timeout=0.5)
            client.get("http://other/", timeout=None)
        with deadline(0), pytest.raises(DeadlineExceededError):
            client.get("http://other/")
    reads = [request.extensions["timeout"]["read"] for request in seen]
    assert reads[0] == 60
    assert reads[2] == 0.5
    assert all(1 < read <= 2 for read in (reads[1], reads[3]))
    assert "x-request-timeout" not in seen[0].headers
    assert 1 < float(seen[1].headers["x-request-timeout"]) <= 2


def test_outgoing_call_does_not_outlive_the_deadline() -> None:
    async def test() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with httpx.AsyncClient(
            timeout=25, event_hooks={"request": [propagate_deadline_async]}
        ) as client:
            started = time.monotonic()
            with deadline(0.1), pytest.raises(httpx.ReadTimeout):
                await client.get(url)
            assert time.monotonic() - started < 15
        server.close()

    run(test)


# ------------------------------------------------------------------ retries


@pytest.mark.guarantee("retries stay within their share", pattern="overload", under="everything fails")
@given(
    events=st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=200),
    ratio=st.floats(0, 1),
    min_per_s=st.floats(0, 5),
    saved=st.floats(0, 20),
)
def test_retries_never_exceed_their_share(
    events: list[tuple[float, bool]], ratio: float, min_per_s: float, saved: float
) -> None:
    now = 0.0
    budget = RetryBudget(ratio, min_per_s=min_per_s, saved=saved, clock=lambda: now)
    calls = retries = 0
    for pause, first in events:
        now += pause
        if first:
            budget.record_call()
            calls += 1
        else:
            retries += budget.acquire_retry()
        assert retries <= ratio * calls + min_per_s * now + saved + 1e-6


@pytest.mark.control("retries stay within their share")
def test_a_tenth_of_failing_calls_is_retried() -> None:
    now = 0.0
    budget = RetryBudget(clock=lambda: now)
    retries = 0
    for _ in range(10_000):
        now += 0.001
        budget.record_call()
        retries += sum(budget.acquire_retry() for _ in range(3))
    assert 1000 <= retries <= 1000 + 10 + 10


def test_no_retry_after_the_deadline() -> None:
    budget = RetryBudget(min_per_s=10)
    budget.record_call()
    with deadline(0):
        assert not budget.acquire_retry()
    assert budget.acquire_retry()
