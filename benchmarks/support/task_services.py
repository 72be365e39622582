"""The same task in four systems: one INSERT and COMMIT a task. Workers import what ``SYSTEM`` names.

DATABASE_URL and TASK_BROKER come from the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

URL, BROKER = os.environ["DATABASE_URL"], os.environ["TASK_BROKER"]
SYSTEM = os.environ["SYSTEM"]
engine = create_engine(URL)

_ORDER = text("INSERT INTO orders (name) VALUES (:name)")
_EFFECT = text("INSERT INTO effects (name) VALUES (:name)")


def place(enqueue: Callable[[Session], object], name: str) -> None:
    """Commit an order, and enqueue its task as the system does."""
    with Session(engine) as session:
        session.execute(_ORDER, {"name": name})
        enqueue(session)
        session.commit()


def record(name: str) -> None:
    with Session(engine) as session:
        session.execute(_EFFECT, {"name": name})
        session.commit()


if SYSTEM == "tenfold":
    from tenfold.tasks import Outbox, create_celery, once

    app: Any = create_celery("bench", broker_url=BROKER, database_url=URL)
    outbox = Outbox(app)

    @app.task(name="bench.effect")
    @once
    def effect(session: Session, name: str) -> None:
        session.execute(_EFFECT, {"name": name})

    def order(name: str) -> None:
        place(lambda session: outbox.enqueue(session, effect, name), name)

elif SYSTEM == "celery":
    from celery import Celery

    app = Celery("bench", broker=BROKER.removesuffix("/0") + "/1")
    app.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1,
        task_track_started=True, task_ignore_result=True,
    )  # fmt: skip

    @app.task(name="bench.effect")
    def celery_effect(name: str) -> None:
        record(name)

    def order(name: str) -> None:
        place(lambda _: None, name)
        celery_effect.delay(name)

elif SYSTEM == "dramatiq":
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    dramatiq.set_broker(RedisBroker(url=BROKER.removesuffix("/0") + "/2"))

    @dramatiq.actor
    def dramatiq_effect(name: str) -> None:
        record(name)

    def order(name: str) -> None:
        place(lambda _: None, name)
        dramatiq_effect.send(name)

elif SYSTEM == "procrastinate":
    import procrastinate

    plain = URL.replace("+psycopg", "")
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=plain))
    in_transaction = text(
        "SELECT procrastinate_defer_jobs_v1(ARRAY[ROW('default', 'bench.effect', 0, NULL, NULL, "
        "jsonb_build_object('name', CAST(:name AS text)), NULL)::procrastinate_job_to_defer_v1])"
    )

    @app.task(name="bench.effect")
    def procrastinate_effect(name: str) -> None:
        record(name)

    def order(name: str) -> None:
        place(lambda session: session.execute(in_transaction, {"name": name}), name)
