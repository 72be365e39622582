"""Notes in a database with replicas: `careful` does it with tenfold, `careless` as it is often done."""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

INSERT = text("insert into notes (value) values (:value)")
NEWEST = text("select value from notes order by id desc limit 10")
PINNED_S = 2.0
LOST: list[Session] = []


def prepare() -> None:
    with create_engine(driven(os.environ["DATABASE_URL"])).begin() as connection:
        connection.execute(text("create table notes (id bigserial primary key, value text)"))


def driven(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def newest(session: Session) -> JSONResponse:
    return JSONResponse(list(session.scalars(NEWEST)))


# ------------------------------------------------------------------ careful


def careful() -> Starlette:
    """Router, monitored pools and both middlewares."""
    from tenfold.database import ConsistencyMiddleware, DatabaseRouter, PoolMiddleware, pool_options

    router = DatabaseRouter(
        os.environ["DATABASE_URL"],
        os.environ["DATABASE_REPLICA_URLS"].split(","),
        keys="0123456789abcdef-0123456789abcdef",
        options={"engine": lambda url: pool_options(url, pool_size=3, max_overflow=2, metrics=False)},
    )

    def write(value: str) -> None:
        with router.write() as session:
            session.execute(INSERT, {"value": value})

    def read() -> JSONResponse:
        with router.read() as session:
            return newest(session)

    async def post(request: Request) -> JSONResponse:
        await run_in_threadpool(write, (await request.json())["value"])
        return JSONResponse({}, 201)

    async def get(request: Request) -> JSONResponse:
        return await run_in_threadpool(read)

    return Starlette(
        routes=[Route("/notes", get), Route("/notes", post, methods=["POST"])],
        middleware=[Middleware(PoolMiddleware), Middleware(ConsistencyMiddleware, router=router)],
    )


# ------------------------------------------------------------------ careless


def plain(url: str, **options: Any) -> Engine:
    return create_engine(driven(url), **options)


async def received(request: Request) -> Any:
    return await request.receive()


class Careless:
    """Reads from any replica, or in another of the ways that its paths are named for."""

    def __init__(self) -> None:
        url = os.environ["DATABASE_URL"]
        self.primary = plain(url, connect_args={"options": "-c synchronous_commit=off"})
        self.replicas = [plain(replica) for replica in os.environ["DATABASE_REPLICA_URLS"].split(",")]
        self.narrow = plain(url, pool_size=1, max_overflow=0, pool_timeout=0.05)
        self.leaking = plain(url, pool_size=2, max_overflow=0, pool_timeout=0.2)

    def write(self, value: str) -> None:
        with Session(self.primary) as session:
            session.execute(INSERT, {"value": value})
            session.commit()

    def read(self, engine: Engine, held_s: float = 0.0) -> JSONResponse:
        with Session(engine) as session:
            answer = newest(session)
            time.sleep(held_s)
            return answer

    async def post(self, request: Request) -> JSONResponse:
        try:
            await run_in_threadpool(self.write, (await request.json())["value"])
        except Exception:  # its pool has what the server ended: the next one is new
            await run_in_threadpool(self.primary.dispose)
            raise
        answer = JSONResponse({}, 201)
        answer.set_cookie("wrote", str(time.time()))
        return answer

    async def of_replicas(self, request: Request) -> JSONResponse:
        return await run_in_threadpool(self.read, random.choice(self.replicas))

    async def of_primary(self, request: Request) -> JSONResponse:
        return await run_in_threadpool(self.read, self.primary)

    async def pinned(self, request: Request) -> JSONResponse:
        """From the primary for a while after a write, and from any replica later."""
        recent = time.time() - float(request.cookies.get("wrote", 0)) < PINNED_S
        return await (self.of_primary(request) if recent else self.of_replicas(request))

    async def held(self, request: Request) -> JSONResponse:
        return await run_in_threadpool(self.read, self.narrow, 0.05)

    async def kept(self, request: Request) -> JSONResponse:
        """Forgets its session when the client leaves while it is at work."""
        await request.body()  # the next thing to be received is that the client left
        session = Session(self.leaking)
        answer = await run_in_threadpool(newest, session)
        leaving = asyncio.create_task(received(request))
        left, _ = await asyncio.wait([leaving], timeout=0.04)
        if left:
            LOST.append(session)
        else:
            await run_in_threadpool(session.close)
        return answer


async def clock(request: Request) -> JSONResponse:
    return JSONResponse(time.time_ns())


def careless() -> Starlette:
    service = Careless()
    reads = {
        "/notes": service.of_replicas,
        "/primary/notes": service.of_primary,
        "/pinned/notes": service.pinned,
        "/clock": clock,
        "/held/notes": service.held,
        "/kept/notes": service.kept,
    }
    routes = [Route(path, read) for path, read in reads.items()]
    return Starlette(routes=[*routes, Route("/notes", service.post, methods=["POST"])])
