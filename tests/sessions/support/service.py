"""A small service, and a store that counts operations and fails on request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tenfold.errors import SessionStoreError
from tenfold.sessions import MemoryStore, SessionMiddleware, current
from tenfold.sessions.stores.store import StoredPayload


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class WatchedStore(MemoryStore):
    """Counts operations; raises ``fault`` unless it is None."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.operations: list[str] = []
        self.fault: Exception | None = None

    def _record(self, name: str) -> None:
        self.operations.append(name)
        if self.fault is not None:
            raise self.fault

    def break_down(self) -> None:
        self.fault = SessionStoreError("the store does not answer")

    async def read(self, handle: str) -> StoredPayload | None:
        self._record("read")
        await asyncio.sleep(0)
        return await super().read(handle)

    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        self._record("read_many")
        return [await MemoryStore.read(self, handle) for handle in handles]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        self._record("create")
        return await super().create(handle, payload, ttl_s=ttl_s)

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        self._record("replace")
        return await super().replace(handle, payload, version=version, ttl_s=ttl_s)

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        self._record("revoke")
        await super().revoke(handle, ttl_s=ttl_s)

    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        self._record("add_member")
        return await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)

    async def members(self, group: str) -> list[str]:
        self._record("members")
        return await super().members(group)


# ------------------------------------------------------------------ endpoints


async def untouched(request: Request) -> Response:
    return JSONResponse("hello")


async def show(request: Request) -> Response:
    session = await current(request)
    return JSONResponse({"data": dict(session), "principal": session.principal})


async def twice(request: Request) -> Response:
    first, second = await asyncio.gather(current(request), current(request))
    return JSONResponse(first is second)


async def put(request: Request) -> Response:
    """``/put?a=1``"""
    (await current(request)).update(request.query_params)
    return JSONResponse("ok")


async def nested(request: Request) -> Response:
    session = await current(request)
    session.setdefault("cart", []).append({"n": 1})
    session["cart"][0]["n"] += 1
    return JSONResponse(session["cart"])


async def large(request: Request) -> Response:
    session = await current(request)
    session["small"] = 1
    session["large"] = "x" * int(request.query_params["bytes"])
    return JSONResponse("ok")


async def login(request: Request) -> Response:
    session = await current(request)
    token = session.login(request.query_params["who"], device=request.query_params.get("device", ""))
    return JSONResponse(token)


async def rotate(request: Request) -> Response:
    return JSONResponse((await current(request)).rotate())


async def logout(request: Request) -> Response:
    (await current(request)).logout()
    return JSONResponse("bye")


async def logout_with_message(request: Request) -> Response:
    session = await current(request)
    session.logout()
    session["message"] = "bye"
    return JSONResponse("bye")


async def logout_everywhere(request: Request) -> Response:
    await (await current(request)).logout_everywhere()
    return JSONResponse("bye")


async def devices(request: Request) -> Response:
    found = await (await current(request)).devices()
    return JSONResponse([[device.handle, device.label, device.current] for device in found])


async def revoke(request: Request) -> Response:
    return JSONResponse(await (await current(request)).revoke(request.query_params["handle"]))


async def fail(request: Request) -> Response:
    session = await current(request)
    session.logout() if "logout" in request.query_params else session.update(failed=True)
    raise RuntimeError("the application is broken")


async def refuse(request: Request) -> Response:
    (await current(request)).change("refused", lambda n: n + 1, 0)
    raise HTTPException(403)


async def swallow(request: Request) -> Response:
    """An application that turns every exception into a 500."""
    try:
        (await current(request)).get("a")
    except Exception:
        return JSONResponse("oops", 500)
    return JSONResponse("ok")


async def stream(request: Request) -> Response:
    session = await current(request)

    async def body() -> Any:
        yield b"first"
        session["late"] = 1
        yield b"second"

    return StreamingResponse(body())


async def background(request: Request) -> Response:
    session = await current(request)
    session["before"] = 1

    async def task() -> None:
        session["after"] = 1
        if "save" in request.query_params:
            await session.save()

    return JSONResponse("ok", background=BackgroundTask(task))


def blocking(request: Request) -> Response:
    session = current.blocking(request)
    session.change("blocking", lambda n: n + 1, 0)
    return JSONResponse(dict(session))


async def cached(request: Request) -> Response:
    await current(request)
    return JSONResponse("ok", headers=dict(request.query_params))


async def chat(socket: WebSocket) -> None:
    session = await current(socket)
    session["joined"] = True
    await socket.accept()
    async for text in socket.iter_text():
        session["last"] = text
        if text != "forget":
            await session.save()


HTTP = (
    untouched, show, twice, put, nested, large, login, rotate, logout, logout_with_message, logout_everywhere,
    devices, revoke, fail, refuse, swallow, stream, background, blocking, cached,
)  # fmt: skip


def service(*, outside: bool = False, **options: Any) -> Any:
    """Build the service; ``outside`` puts the middleware around Starlette's own exception handlers too."""
    routes = [*(Route(f"/{each.__name__}", each) for each in HTTP), WebSocketRoute("/chat", chat)]
    if outside:
        return SessionMiddleware(Starlette(routes=routes), **options)
    app = Starlette(routes=routes)
    app.add_middleware(SessionMiddleware, **options)
    return app
