"""Place orders, which are paid in the background, and list one's own."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter, HTTPException
from sqlalchemy import orm, select, update

from shop import api
from shop.scaled.cache import cache
from shop.scaled.database import router as database
from shop.scaled.models import Order, OrderItem, Product
from shop.scaled.sessions import CurrentUserId
from shop.scaled.tasks import outbox, process_order

router = APIRouter(prefix="/api/orders")


@router.post("", status_code=201)
def place_order(new: api.NewOrder, user_id: CurrentUserId) -> api.Order:
    order = Order(user_id=user_id, total_cents=0)
    with database.write() as session:
        for product_id, quantity in sorted(quantities(new).items()):
            product = take_from_stock(session, product_id, quantity)
            order.items.append(
                OrderItem(product=product, quantity=quantity, unit_price_cents=product.price_cents)
            )
            order.total_cents += quantity * product.price_cents
        session.add(order)
        session.flush()
        outbox.enqueue(session, process_order, order.id, key=f"order {order.id}")
        cache.invalidate(*(f"product:{item.product_id}" for item in order.items), session=session)
        return order_answer(order)  # before the commit, after which everything would be read again


@router.get("")
def my_orders(user_id: CurrentUserId) -> api.Orders:
    newest = (
        select(Order)
        .where(Order.user_id == user_id)
        .order_by(Order.created_at.desc())
        .limit(10)
        .options(orm.selectinload(Order.items).joinedload(OrderItem.product))
    )
    with database.read() as session:
        orders = session.scalars(newest)
        return api.Orders(orders=[order_answer(order) for order in orders])


def order_answer(order: Order) -> api.Order:
    items = [
        api.OrderLine(
            product_id=item.product_id,
            name=item.product.name,
            quantity=item.quantity,
            unit_price_cents=item.unit_price_cents,
        )
        for item in order.items
    ]
    return api.Order(
        id=order.id,
        status=order.status,
        total_cents=order.total_cents,
        created_at=order.created_at,
        items=items,
    )


def quantities(new: api.NewOrder) -> Counter[int]:
    counted: Counter[int] = Counter()
    for line in new.items:
        counted[line.product_id] += line.quantity
    return counted


def take_from_stock(session: orm.Session, product_id: int, quantity: int) -> Product:
    product = session.get(Product, product_id)
    if product is None:
        raise HTTPException(422, f"No product {product_id}")
    left = session.scalar(
        update(Product)
        .where(Product.id == product_id, Product.stock >= quantity)
        .values(stock=Product.stock - quantity)
        .returning(Product.stock)
    )
    if left is None:
        raise HTTPException(409, f"Only {product.stock} of product {product_id} left")
    return product
