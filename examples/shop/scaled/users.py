"""The customer's own page."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import func, select

from shop import api
from shop.scaled.database import router as database
from shop.scaled.models import Order, User
from shop.scaled.sessions import CurrentUserId

router = APIRouter(prefix="/api/user")


@router.get("/profile")
def profile(user_id: CurrentUserId) -> api.Profile:
    with database.read() as session:
        user = session.get_one(User, user_id)
        orders = session.scalar(select(func.count()).where(Order.user_id == user_id)) or 0
    return api.Profile(
        id=user.id, email=user.email, name=user.name, member_since=user.created_at, orders=orders
    )
