"""Brokers of all kinds: the newest and the oldest server, over TCP, a unix socket and Sentinel; drivers."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tenfold.tasks.states import State
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import eventually
from tests.tasks.conftest import Service
from tests.tasks.test_losses import publish_without_worker


def check(service: Service, empty: Callable[[], object]) -> None:
    """A task runs; one whose message is lost with the data of Redis runs, too."""
    publish_without_worker(service, [lost := service.enqueue("effect", "lost")])
    empty()
    service.start_worker()
    for id in (service.enqueue("effect", "run"), lost):
        service.wait(id)
    assert [service.effects(name) for name in ("run", "lost")] == [[""], [""]]


def test_tcp(service: Service, redis_server: RedisServer) -> None:
    check(service, lambda: redis_server.command("FLUSHALL"))


def test_unix_socket(make_service: Callable[..., Service], redis_program: Path, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    server = RedisServer(redis_program, "--unixsocket", str(path))
    try:
        service = make_service(f"redis+socket://:{server.password}@{path}")
        check(service, lambda: server.command("FLUSHALL"))
    finally:
        server.close()


def test_sentinel(make_service: Callable[..., Service], redis_program: Path, tmp_path: Path) -> None:
    server = RedisServer(redis_program)
    port = free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {server.port} 1\n"
        f"sentinel auth-pass main {server.password}\n"
    )
    sentinel = subprocess.Popen(
        [redis_program, configuration, "--sentinel"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        broker = f"sentinel://:{server.password}@127.0.0.1:{port}"
        service = make_service(broker, transport={"master_name": "main"})
        check(service, lambda: server.command("FLUSHALL"))
    finally:
        sentinel.kill()
        sentinel.wait()
        server.close()


def with_driver(url: str, driver: str) -> str:
    return url.replace("+psycopg", f"+{driver}")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_sessions_of_all_drivers_enqueue_and_look(service: Service, driver: str) -> None:
    outbox, effect = service.module.outbox, service.module.effect

    async def enqueue() -> tuple[Any, State]:
        engine = create_async_engine(with_driver(service.url, driver))
        async with AsyncSession(engine) as session:
            id = await outbox.enqueue_async(session, effect, "x", key="k", delay_s=0.5, owner="ann")
            assert await outbox.enqueue_async(session, effect, "x", key="k") == id
            await session.commit()
            state = (await outbox.status_async(session, id)).state
        await engine.dispose()
        return id, state

    if driver == "psycopg2":
        engine = create_engine(with_driver(service.url, driver))
        with Session(engine) as session:
            id = outbox.enqueue(session, effect, "x", key="k", delay_s=0.5, owner="ann")
            assert outbox.enqueue(session, effect, "x", key="k") == id
            session.commit()
            state = outbox.status(session, id).state
        engine.dispose()
    else:
        id, state = asyncio.run(enqueue())
    assert (state, service.status(id).owner) == (State.ENQUEUED, "ann")


def test_worker_whose_ledger_uses_psycopg2(service: Service) -> None:
    service.environment["DATABASE_URL"] = with_driver(service.url, "psycopg2")
    service.start_worker()
    service.wait(service.enqueue("effect", "x"))
    service.wait(service.enqueue("fail_first", "y", 1))
    eventually(lambda: service.effects("x") == [""])
