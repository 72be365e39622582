"""Sales reports. Clients get a task to ask for, so that the work can move to a background worker."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, HTTPException
from sqlalchemy import orm, select

from shop import api
from shop.naive.database import Session
from shop.naive.models import Order, OrderItem, Product, Task
from shop.naive.sessions import CurrentUserId

router = APIRouter()


@router.post("/reports/monthly", status_code=202)
def monthly_report(request: api.ReportRequest, user_id: CurrentUserId) -> api.TaskCreated:
    with Session() as session:
        result = sales(session, request.month)
        task = Task(user_id=user_id, kind="monthly report", status="finished", result=result)
        session.add(task)
        session.commit()
        return api.TaskCreated(task_id=str(task.id))


@router.get("/tasks/{task_id}")
def show_task(task_id: UUID, user_id: CurrentUserId) -> api.Task:
    with Session() as session:
        task = session.get(Task, task_id)
    if task is None or task.user_id != user_id:
        raise HTTPException(404, f"No task {task_id}")
    return api.Task.model_validate({"task_id": str(task.id), "status": task.status, "result": task.result})


def sales(session: orm.Session, month: str) -> dict[str, Any]:
    first, end = month_bounds(month)
    lines = session.execute(
        select(
            Order.id,
            Product.category,
            Product.name,
            OrderItem.quantity,
            OrderItem.unit_price_cents,
        )
        .join(OrderItem, OrderItem.order_id == Order.id)
        .join(Product, OrderItem.product_id == Product.id)
        .where(Order.created_at >= first, Order.created_at < end)
    ).all()
    categories: Counter[str] = Counter()
    products: Counter[str] = Counter()
    for line in lines:
        categories[line.category] += line.quantity * line.unit_price_cents
        products[line.name] += line.quantity
    return {
        "month": month,
        "orders": len({line.id for line in lines}),
        "revenue_cents": categories.total(),
        "revenue_cents_by_category": dict(sorted(categories.items())),
        "best_sellers": [
            {"name": name, "sold": sold}
            for name, sold in sorted(products.items(), key=lambda item: (-item[1], item[0]))[:10]
        ],
    }


def month_bounds(month: str) -> tuple[datetime, datetime]:
    first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    year, index = divmod(first.year * 12 + first.month, 12)
    return first, first.replace(year=year, month=index + 1)
