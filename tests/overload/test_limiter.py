"""The concurrency limiter: exact counts, prompt refusals, priorities, fair shares, shadow mode."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tenfold.deadlines import deadline
from tenfold.metrics import exposition
from tenfold.overload.limiter import ConcurrencyLimiter
from tenfold.overload.limits import FixedLimit

Scope = dict[str, Any]


def scope(path: str = "/", tenant: str = "", kind: str = "http") -> Scope:
    return {"type": kind, "method": "GET", "path": path, "headers": [], "tenant": tenant}


async def call(app: Any, asked: Scope) -> tuple[int, dict[bytes, bytes]]:
    """Return status and headers of the answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(asked, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])


class Service:
    """An app whose requests end on command; records which ran, and the most at once."""

    def __init__(self) -> None:
        self.running: list[tuple[Scope, asyncio.Event]] = []
        self.began: list[str] = []
        self.most = self.now = 0

    async def __call__(self, asked: Any, receive: Any, send: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.began.append(asked["tenant"] or asked["path"])
        over = asyncio.Event()
        self.running.append((asked, over))
        try:
            await over.wait()
        finally:
            self.now -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def end_one(self) -> None:
        self.running.pop(0)[1].set()
        await settle()


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def arrive(app: Any, *asked: Scope) -> list[asyncio.Task[tuple[int, dict[bytes, bytes]]]]:
    return [asyncio.create_task(call(app, one)) for one in asked]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


def test_requests_beyond_the_limit_wait_and_beyond_the_queue_get_503() -> None:
    async def test() -> None:
        service = Service()
        app = ConcurrencyLimiter(service, limit=FixedLimit(2), max_waiting=1, max_wait_s=10)
        tasks = arrive(app, *[scope()] * 4)
        await settle()
        assert service.now == 2
        status, headers = tasks[3].result()
        assert status == 503
        assert headers[b"retry-after"] in {b"1", b"2", b"3"}
        for _ in range(3):
            await service.end_one()
        assert [task.result()[0] for task in tasks[:3]] == [200, 200, 200]
        assert (app.controller.in_flight, len(app.queue), service.most) == (0, 0, 2)

    run(test)


@pytest.mark.control("no slot is ever lost")
def test_the_control_without_the_limiter_all_run_at_once() -> None:
    async def test() -> None:
        service = Service()
        tasks = arrive(service, *[scope()] * 4)
        await settle()
        assert service.most == 4
        for task in tasks:
            task.cancel()

    run(test)


def test_max_wait_is_enforced_without_other_traffic() -> None:
    async def test() -> None:
        service = Service()
        app = ConcurrencyLimiter(service, limit=FixedLimit(1), max_wait_s=0.02)
        first, second = arrive(app, scope(), scope())
        assert (await second)[0] == 503
        assert app.shed_counts == {("waited", "normal"): 1}
        await service.end_one()
        assert (await first)[0] == 200

    run(test)


def test_queued_request_past_its_deadline_gets_503() -> None:
    async def test() -> None:
        service = Service()
        app = ConcurrencyLimiter(service, limit=FixedLimit(1), max_wait_s=10)
        arrive(app, scope())
        await settle()
        with deadline(0.0):
            (late,) = arrive(app, scope())
        await settle()
        await service.end_one()
        assert (await late)[0] == 503
        assert app.shed_counts == {("deadline", "normal"): 1}

    run(test)


def test_higher_priority_goes_first_and_displaces_lower() -> None:
    async def test() -> None:
        service = Service()
        priority = {"/": "normal", "/pay": "critical", "/pay/history": "sheddable", "/export": "sheddable"}
        app = ConcurrencyLimiter(
            service, limit=FixedLimit(1), max_waiting=3, max_wait_s=10, priority=priority
        )
        paths = ["/", "/export", "/pay/history", "/other", "/pay/now"]
        tasks = arrive(app, *map(scope, paths))
        await settle()
        assert tasks[1].result()[0] == 503  # the oldest sheddable one
        for _ in range(4):
            await service.end_one()
        assert service.began == ["/", "/pay/now", "/other", "/pay/history"]
        # A request never displaces one of higher priority.
        tasks = arrive(app, *map(scope, ["/", "/pay/a", "/pay/b", "/pay/c", "/", "/export"]))
        await settle()
        assert [task.result()[0] for task in tasks[4:]] == [503, 503]
        for _ in range(4):
            await service.end_one()

    run(test)


def share_of_modest_tenant(tenant: Callable[[Any], str] | None) -> float:
    """Return the share of slots that one tenant gets while another sends ten times as many requests."""

    async def test() -> None:
        service = Service()
        app = ConcurrencyLimiter(service, limit=FixedLimit(4), max_waiting=40, max_wait_s=10, tenant=tenant)
        tasks = arrive(app, *[scope(tenant="greedy")] * 30)
        for _ in range(60):
            tasks += arrive(app, *[scope(tenant="greedy")] * 10, scope(tenant="modest"))
            await settle()
            await service.end_one()
        counts.update(service.began[-50:])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (app.controller.in_flight, len(app.queue)) == (0, 0)
        assert app.controller._tenants == {}
        assert not any(app.queue._lines.values())

    counts: Counter[str] = Counter()
    run(test)
    return counts["modest"] / counts.total()


@pytest.mark.guarantee(
    "a greedy tenant gets no more than the others", pattern="overload", under="ten times the requests"
)
def test_greedy_tenant_gets_no_more_than_its_fair_share() -> None:
    assert share_of_modest_tenant(lambda asked: asked["tenant"]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.control("a greedy tenant gets no more than the others")
def test_the_control_without_tenants_the_greedy_one_takes_nearly_all() -> None:
    assert share_of_modest_tenant(None) < 0.2


def test_exempt_paths_and_websockets_pass() -> None:
    async def test() -> None:
        service = Service()
        app = ConcurrencyLimiter(service, limit=FixedLimit(1), max_waiting=0)
        passing = [scope("/health/ready"), scope("/metrics"), scope("/x", kind="websocket")]
        tasks = arrive(app, scope(), *passing)
        await settle()
        assert service.now == 4
        assert (await call(app, scope("/metricsX")))[0] == 503
        for _ in range(4):
            await service.end_one()
        assert all([(await task)[0] == 200 for task in tasks])

    run(test)


def test_shadow_mode_counts_and_refuses_nothing() -> None:
    async def test() -> None:
        service = Service()
        registry = CollectorRegistry()
        app = ConcurrencyLimiter(
            service, limit=FixedLimit(1), max_waiting=1, shadow=True, metrics=True, registry=registry
        )
        tasks = arrive(app, *[scope()] * 4)
        await settle()
        assert service.now == 4
        assert app.shed_counts == {("full", "normal"): 2}
        for _ in range(4):
            await service.end_one()
        assert [(await task)[0] for task in tasks] == [200] * 4
        text = exposition(registry=registry).decode()
        assert 'tenfold_shed_total{mode="shadow",priority="normal",reason="full"} 2.0' in text
        assert "tenfold_concurrency_limit 1.0" in text
        assert "tenfold_concurrency_in_flight 0.0" in text

    run(test)


@pytest.mark.guarantee(
    "no slot is ever lost", pattern="overload", under="errors and cancellations at any moment"
)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    limit=st.integers(1, 4),
    waiting=st.integers(0, 5),
    limited=st.booleans(),
)
def test_in_flight_count_is_exact_after_errors_and_cancellations(
    seed: int, limit: int, waiting: int, limited: bool
) -> None:
    """Requests end, fail, and are cancelled at any moment, waiting or running: no slot is ever lost."""
    rng = random.Random(seed)

    async def service(asked: Any, receive: Any, send: Any) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            if rng.random() < 0.3:
                raise ValueError("the app's own")
            await send({"type": "http.response.start", "status": rng.choice([200, 404, 503]), "headers": []})
            await send({"type": "http.response.body", "body": b""})
        finally:
            now -= 1

    async def test() -> None:
        app = ConcurrencyLimiter(
            service,
            limit=FixedLimit(limit),
            max_waiting=waiting,
            max_wait_s=rng.choice([0.0001, 10]),
            tenant=lambda asked: rng.choice("abc"),
            priority=lambda asked: rng.choice(["critical", "normal", "sheddable"]),  # type: ignore[arg-type, return-value]
        )
        tasks = []
        for _ in range(60):
            tasks += arrive(app, scope())
            if rng.random() < 0.5:
                await asyncio.sleep(0)
            if rng.random() < 0.4:
                rng.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= limit
        assert (app.controller.in_flight, len(app.queue), app.controller._tenants) == (0, 0, {})
        assert not any(app.queue._lines.values())
        # It still serves.
        answered = asyncio.gather(*arrive(app, scope()), return_exceptions=True)
        assert not isinstance((await answered)[0], asyncio.CancelledError)

    now = most = 0
    run(test)


def test_starlette_app_answers_as_without_the_limiter() -> None:
    """Async and sync endpoints, a failing one, a missing one."""

    async def slow(request: Request) -> PlainTextResponse:
        await asyncio.sleep(0.001)
        return PlainTextResponse("slow")

    def sync(request: Request) -> PlainTextResponse:
        return PlainTextResponse("sync")

    def broken(request: Request) -> PlainTextResponse:
        raise ValueError("broken")

    routes = [Route("/slow", slow), Route("/sync", sync), Route("/broken", broken)]
    app = ConcurrencyLimiter(Starlette(routes=routes), limit=FixedLimit(2))

    async def test() -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            paths = ["/slow", "/sync", "/broken", "/nothing"]
            answers = await asyncio.gather(*[client.get(path) for path in paths * 3])
            assert [answer.status_code for answer in answers] == [200, 200, 500, 404] * 3
        assert app.controller.in_flight == 0

    run(test)
