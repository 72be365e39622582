"""The order of middlewares: every example follows the page that has it, and it does what it promises."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tenfold.asgi import ASGIApp
from tenfold.balancing.health import Health, HealthMiddleware
from tenfold.deadlines import DeadlineMiddleware, remaining_s
from tenfold.metrics import MetricsEndpoint, MetricsMiddleware, exposition
from tenfold.overload.limiter import ConcurrencyLimiter
from tenfold.overload.limits import FixedLimit

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "middlewares.md").read_text()
ORDER = re.findall(r"^ +│ +([A-Z]\w+)", PAGE, re.MULTILINE)

ADDED = re.compile(r"add_middleware\(\s*(?:#[^\n]*\n\s*)?(\w+)")
LISTED = re.compile(r"\bMiddleware\((\w+)")


def examples() -> Iterator[tuple[str, str]]:
    """Each text that may add several middlewares to one app: code blocks of pages, docstrings, programs."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, block in enumerate(re.findall(r"(?:^(?:    .*)?\n)+", page.read_text(), re.MULTILINE)):
            yield f"{page.name} {number}", block
    for folder in ("src", "examples", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield str(file.relative_to(ROOT)), file.read_text()


def outermost_first(text: str) -> list[str]:
    names = ADDED.findall(text)[::-1] or LISTED.findall(text)
    return [name for name in names if name in ORDER]


def is_ordered(names: Sequence[str]) -> bool:
    return [ORDER.index(name) for name in names] == sorted(ORDER.index(name) for name in names)


SEVERAL = [(name, found) for name, text in examples() if len(found := outermost_first(text)) > 1]


def test_the_page_names_every_middleware() -> None:
    defined = {
        name
        for file in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"^class (\w*Middleware|MetricsEndpoint|\w+Limiter)\b", file.read_text(), re.M)
    }
    assert set(ORDER) == defined


@pytest.mark.parametrize(("where", "names"), SEVERAL, ids=[where for where, _ in SEVERAL])
def test_every_example_follows_the_order(where: str, names: list[str]) -> None:
    assert is_ordered(names), names


def test_the_readme_and_the_shop_are_among_the_examples() -> None:
    places = {where for where, _ in SEVERAL}
    assert any(where.startswith("README.md") for where in places)
    assert "examples/shop/scaled/app.py" in places


def test_the_control_a_wrong_order_is_found() -> None:
    text = "app.add_middleware(ConcurrencyLimiter)\napp.add_middleware(SessionMiddleware, store=store)"
    assert not is_ordered(outermost_first(text))


# ------------------------------------------------------------------ what the order is for


def service(gate: asyncio.Event, begun: asyncio.Event, *, registry: CollectorRegistry) -> ASGIApp:
    async def slow(request: Request) -> PlainTextResponse:
        begun.set()
        await gate.wait()
        return PlainTextResponse(f"{remaining_s() is not None}")

    return Starlette(
        routes=[Route("/slow", slow)],
        middleware=[
            Middleware(HealthMiddleware, health=Health(), drain_on_sigterm=False),
            Middleware(MetricsEndpoint, registry=registry),
            Middleware(MetricsMiddleware, registry=registry),
            Middleware(DeadlineMiddleware, timeout_s=10),
            Middleware(ConcurrencyLimiter, limit=FixedLimit(1), max_waiting=0),
        ],
    )


def test_a_full_service_still_answers_probes_and_counts_its_refusals() -> None:
    registry = CollectorRegistry()

    async def run() -> tuple[int, int, str]:
        gate, begun = asyncio.Event(), asyncio.Event()
        transport = httpx.ASGITransport(service(gate, begun, registry=registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            first = asyncio.create_task(client.get("/slow"))
            await begun.wait()
            refused = await client.get("/slow")
            live = await client.get("/health/live")
            gate.set()
            return refused.status_code, live.status_code, (await first).text

    assert asyncio.run(run()) == (503, 200, "True")
    counted = exposition(registry=registry).decode()
    assert re.search(
        r'http_server_request_duration_seconds_count\{[^}]*status_code="503"[^}]*\} 1\.0', counted
    )
    assert "/health/live" not in counted
