"""Payment, emails, reports, videos: what happens behind the requests. `tenfold up` starts the workers."""

from __future__ import annotations

import json
import os
import smtplib
import zlib
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from sqlalchemy import orm
from sqlalchemy.dialects.postgresql import insert

from shop.scaled.database import reporting
from shop.scaled.database import router as database
from shop.scaled.models import Order, Payment, Sales, User
from shop.scaled.sales import monthly_sales
from tenfold.tasks import Outbox, QueueSettings, TaskSettings, create_celery, once

celery = create_celery(
    "shop",
    broker_url=os.environ["REDIS_URL"],
    database_url=os.environ["DATABASE_URL"],
    router=database,
    settings=TaskSettings(
        lost_after_s=10,
        queues={
            "emails": QueueSettings(
                tasks=("*.send_email",), concurrency=10, soft_limit_s=30, hard_limit_s=45
            ),
            "reports": QueueSettings(tasks=("*_report",), concurrency=5),
            "video": QueueSettings(
                tasks=("*.process_video",), concurrency=2, soft_limit_s=3500, hard_limit_s=3600
            ),
        },
    ),
)
outbox = Outbox(celery)
# A folder by default; s3://…, gs:// or az:// with the credentials in the environment.
files = obstore.store.from_url(
    os.environ.get("STORE_URL", Path(".tenfold/store").absolute().as_uri()),
    **({} if "STORE_URL" in os.environ else {"mkdir": True}),
)


@celery.task
@once
def process_order(session: orm.Session, order_id: int) -> str:
    """Take the payment, count the sale and confirm the order; all of it once, together."""
    order = session.get_one(Order, order_id)
    session.add(Payment(order_id=order.id, amount_cents=order.total_cents))
    order.status = "paid"
    count = insert(Sales).values(day=order.created_at.date(), orders=1, revenue_cents=order.total_cents)
    session.execute(
        count.on_conflict_do_update(
            index_elements=[Sales.day],
            set_={
                "orders": Sales.orders + 1,
                "revenue_cents": Sales.revenue_cents + count.excluded.revenue_cents,
            },
        )
    )
    user = session.get_one(User, order.user_id)
    text = f"Thank you, {user.name}: your order {order.id} is paid."
    outbox.enqueue(
        session, send_email, user.email, f"Order {order.id}", text, key=f"confirmation of order {order.id}"
    )
    return "paid"


@celery.task(bind=True)
def send_email(self: Any, address: str, subject: str, text: str) -> None:
    """Send an email over SMTP; without SMTP_URL it goes into a file.

    It may be sent twice if the worker dies in between: mailboxes recognise the second by its Message-ID.
    """
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@shop.example", address, subject
    message["Message-ID"] = f"<{self.idempotency_key}@shop.example>"
    message.set_content(text)
    if server := urlsplit(os.environ.get("SMTP_URL", "")).netloc:
        host, _, port = server.partition(":")
        with smtplib.SMTP(host, int(port or 25), timeout=10) as connection:
            connection.send_message(message)
    else:
        obstore.put(files, f"mail/{self.idempotency_key}.eml", message.as_bytes())


@celery.task(bind=True)
def generate_monthly_report(self: Any, user_id: int, month: str) -> dict[str, Any]:
    """Compute a report, store it as a file, and send its owner the link."""
    with reporting() as session:
        report = monthly_sales(session, month)
    path = f"reports/{self.idempotency_key}.json"
    obstore.put(files, path, json.dumps(report).encode())
    with database.write() as session:
        address = session.get_one(User, user_id).email
        key = f"report {self.idempotency_key}"
        outbox.enqueue(session, send_email, address, f"Sales of {month}", f"Your report: {path}", key=key)
    return report


@celery.task(bind=True)
def process_video(self: Any, name: str, segments: int) -> int:
    """Encode a video one segment at a time; an interrupted one goes on with the next."""
    done = self.checkpoint or 0
    for segment in range(done, segments):
        data = zlib.compress(f"{name} {segment} ".encode() * 50_000, level=9)
        obstore.put(files, f"videos/{self.idempotency_key}/{segment}", data)
        self.report_progress((segment + 1) / segments, checkpoint=segment + 1)
    return segments
