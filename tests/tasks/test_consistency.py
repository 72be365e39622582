"""With a router, a task reads what was committed before it started, from replicas too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
from sqlalchemy import text

from tenfold.database import DatabaseRouter
from tenfold.tasks import create_celery
from tests.database.conftest import Servers, make_router, postgresql, servers

__all__ = ["make_router", "postgresql", "servers"]
SEES = "a task reads what was committed when it started, from replicas too"


def reads(servers: Servers, make_router: Callable[..., DatabaseRouter], *, with_router: bool) -> int:
    """Commit a row while the replicas are held back, and read it as a task does."""
    router = make_router(servers.urls)
    app = create_celery(
        "t",
        broker_url="redis://localhost:1",
        database_url=servers.primary.url,
        router=router if with_router else None,
    )
    servers.execute(servers.primary, "DROP TABLE IF EXISTS seen", "CREATE TABLE seen (n int)")
    servers.execute(servers.primary, "GRANT ALL ON seen TO PUBLIC")
    servers.wait_for_replicas()
    with ExitStack() as held:
        for replica in servers.replicas:
            held.enter_context(servers.hold_back(replica, 1500))
        with nullcontext() if with_router else router.consistency_context():
            servers.execute(servers.primary, "INSERT INTO seen VALUES (1)")
            with app.task_context({}), router.read() as session:
                return int(session.execute(text("SELECT count(*) FROM seen")).scalar_one())


@pytest.mark.guarantee(SEES, pattern="tasks", under="replicas that are late")
def test_task_sees_what_its_request_wrote(servers: Servers, make_router: Callable[..., Any]) -> None:
    assert reads(servers, make_router, with_router=True) == 1


@pytest.mark.control(SEES, "without router=")
def test_the_control_without_the_router_it_may_not(servers: Servers, make_router: Callable[..., Any]) -> None:
    assert reads(servers, make_router, with_router=False) == 0
