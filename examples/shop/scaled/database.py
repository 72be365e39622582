"""The database router: endpoints open sessions with `router.read()` and `router.write()`."""

from __future__ import annotations

import os

from tenfold.database import DatabaseRouter
from tenfold.database.replicas.sessions import SessionScope

POOL = {
    "pool_size": 5,  # two instances, a pool each for writes, and one a server for reads
    "max_overflow": 5,
    "pool_timeout": 2,
    # A report must not take every core of the database.
    "connect_args": {"options": "-c max_parallel_workers_per_gather=0"},
}

replicas = [url for url in os.environ.get("DATABASE_REPLICA_URLS", "").split(",") if url]
router = DatabaseRouter(
    os.environ["DATABASE_URL"],
    replicas,
    keys=os.environ["SECRET_KEY"],
    options={"engine": POOL},
)


def reporting() -> SessionScope:
    """For long statements: on a replica, with a pool of its own, where there is one."""
    return router.analytics() if replicas else router.read()
