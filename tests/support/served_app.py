"""An app with a health endpoint, metrics and sessions, for tests on a real granian below ``/api``."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route

from tenfold.balancing.health import Health, HealthMiddleware
from tenfold.metrics import MetricsEndpoint, MetricsMiddleware
from tenfold.sessions import MemoryStore, SessionMiddleware, current
from tenfold.sessions.transport import CookieTransport


async def download(request: Request) -> FileResponse:
    """Send a file, and save in the background that it was sent."""
    session = await current(request)
    session["begun"] = True

    async def note() -> None:
        session["sent"] = "http.response.pathsend" in request.scope["extensions"]
        await session.save()

    return FileResponse(__file__, background=BackgroundTask(note))


async def downloads(request: Request) -> JSONResponse:
    session = await current(request)
    return JSONResponse([session.get("begun"), session.get("sent")])


app = Starlette(
    routes=[Route("/files/{name}", download), Route("/downloads", downloads)],
    middleware=[
        Middleware(HealthMiddleware, health=Health()),
        Middleware(MetricsEndpoint),
        Middleware(MetricsMiddleware),
        Middleware(SessionMiddleware, store=MemoryStore(), transport=CookieTransport(secure=False)),
    ],
)
