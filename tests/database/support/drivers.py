"""The same test for drivers of both kinds: sync ones in the thread, those for asyncio in a greenlet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.util import greenlet_spawn

from tenfold.database import DatabaseRouter


def with_driver(url: str, driver: str, **query: str) -> str:
    made = make_url(url).set(drivername="postgresql+" + driver.split(maxsplit=1)[0]).update_query_dict(query)
    return made.render_as_string(hide_password=False)


def run(driver: str, router: DatabaseRouter, work: Callable[[], Any]) -> Any:
    """Run ``work`` as the driver needs it: in a greenlet of SQLAlchemy's for asyncio."""
    if driver in ("psycopg", "psycopg2"):
        return work()

    async def scenario() -> Any:
        try:
            return await greenlet_spawn(work)
        finally:
            await router.aclose()

    return asyncio.run(scenario())


def sessions(driver: str, router: DatabaseRouter, use: str, **options: Any) -> Any:
    """A synchronous session over the router's connections of the driver's kind."""
    if driver in ("psycopg", "psycopg2"):
        return getattr(router, use)(**options)
    scope = getattr(router, use)(**options)
    made = scope._make_async().sync_session

    class Scope:
        def __enter__(self) -> Any:
            return made

        def __exit__(self, kind: Any, *_: Any) -> None:
            try:
                if kind is None and scope._commits:
                    made.commit()
            finally:
                made.close()

    return Scope()
