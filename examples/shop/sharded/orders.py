"""Orders on the shard of their user; the stock is in the one database, with the catalogue."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import PlainSerializer
from sqlalchemy import orm, select

from shop import api
from shop.scaled.cache import cache
from shop.scaled.database import router as catalogue
from shop.scaled.orders import quantities, take_from_stock
from shop.scaled.sessions import CurrentUserId
from shop.sharded.database import shards
from shop.sharded.models import Order, OrderItem
from shop.sharded.tasks import confirm_order, outbox

router = APIRouter(prefix="/api/orders")


class OrderAnswer(api.Order):
    """64 bits are more than JavaScript keeps of a number: the id is sent as text."""

    id: Annotated[int, PlainSerializer(str, return_type=str)]


class OrdersAnswer(api.Orders):
    orders: list[OrderAnswer]


class OrderPage(OrdersAnswer):
    """Orders of all users, newest first; `next` is what `after` takes for the next page."""

    next: str


@router.post("", status_code=201)
def create_order(new: api.NewOrder, user_id: CurrentUserId) -> OrderAnswer:
    """Take the stock and place the order: two databases, and so two transactions.

    The stock is committed last, together with the task that confirms the order. After a crash in between
    the order stays pending, and nothing was taken.
    """
    with catalogue.write() as session:
        products = [(take_from_stock(session, *line), line[1]) for line in sorted(quantities(new).items())]
        items = [
            OrderItem(
                product_id=product.id,
                user_id=user_id,
                name=product.name,
                quantity=quantity,
                unit_price_cents=product.price_cents,
            )
            for product, quantity in products
        ]
        answer = shards.run(user_id, lambda shard: insert_order(shard, user_id, items))
        outbox.enqueue(session, confirm_order, user_id, answer.id, key=f"order {answer.id}")
        cache.invalidate(*(f"product:{item.product_id}" for item in answer.items), session=session)
    return answer


def insert_order(session: orm.Session, user_id: int, items: list[OrderItem]) -> OrderAnswer:
    total = sum(item.quantity * item.unit_price_cents for item in items)
    order = Order(user_id=user_id, total_cents=total)
    session.add(order)
    session.flush()  # its id is the shard's
    order.items = items
    session.flush()
    return order_answer(order)


@router.get("")
def get_user_orders(user_id: CurrentUserId) -> OrdersAnswer:
    newest = (
        select(Order)
        .where(Order.user_id == user_id)
        .order_by(Order.created_at.desc())
        .limit(10)
        .options(orm.selectinload(Order.items))
    )
    with shards.session_for(user_id, read_only=True) as session:
        return OrdersAnswer(orders=[order_answer(order) for order in session.scalars(newest)])


@router.get("/all")
def get_all_orders(
    _: CurrentUserId, size: Annotated[int, Query(ge=1, le=100)] = 20, after: str = ""
) -> OrderPage:
    newest = select(Order).order_by(Order.created_at.desc()).options(orm.selectinload(Order.items))
    page = shards.query_page(newest, size=size, after=after)
    return OrderPage(orders=[order_answer(order) for order in page.rows], next=page.next)


def order_answer(order: Order) -> OrderAnswer:
    items = [
        api.OrderLine(
            product_id=item.product_id,
            name=item.name,
            quantity=item.quantity,
            unit_price_cents=item.unit_price_cents,
        )
        for item in order.items
    ]
    return OrderAnswer(
        id=order.id,
        status=order.status,
        total_cents=order.total_cents,
        created_at=order.created_at,
        items=items,
    )
