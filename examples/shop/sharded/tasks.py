"""Orders are confirmed in the background. The task may run twice: it says the same twice."""

from __future__ import annotations

import os

from sqlalchemy import update

from shop.scaled.database import router as catalogue
from shop.sharded.database import shards
from shop.sharded.models import Order
from tenfold.tasks import Outbox, TaskSettings, create_celery

celery = create_celery(
    "shop",
    broker_url=os.environ["REDIS_URL"],
    database_url=os.environ["DATABASE_URL"],
    router=catalogue,
    settings=TaskSettings(lost_after_s=10),
)
outbox = Outbox(celery)


@celery.task
def confirm_order(user_id: int, order_id: int) -> str:
    """Mark an order as paid, on its shard."""
    paid = update(Order).where(Order.id == order_id, Order.user_id == user_id).values(status="paid")
    shards.run(user_id, lambda session: session.execute(paid) and None)
    return "paid"
