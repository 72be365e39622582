"""What was sold in a month."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import orm, select

from shop.scaled.models import Order, OrderItem, Product


def monthly_sales(session: orm.Session, month: str) -> dict[str, Any]:
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
