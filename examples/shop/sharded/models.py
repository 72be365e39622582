"""What is sharded by user; users and products are in the one database, as in `scaled`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, ForeignKeyConstraint, Index
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from shop.scaled.models import now
from tenfold.sharding import Sharded, next_id


class ShardBase(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012


class Order(Sharded, ShardBase):
    __tablename__ = "orders"
    __sharded_by__ = "user_id"
    __table_args__ = (
        Index("orders_of_user", "user_id", "created_at"),
        Index("orders_newest", "created_at", "id", "bucket"),  # for pages over all shards
    )

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, server_default=next_id())
    user_id: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(default="pending")
    total_cents: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=now)

    items: Mapped[list[OrderItem]] = relationship(back_populates="order", order_by="OrderItem.product_id")


class OrderItem(Sharded, ShardBase):
    """The product's name is kept with the order: the catalogue is in another database."""

    __tablename__ = "order_items"
    __sharded_by__ = "user_id"
    __table_args__ = (ForeignKeyConstraint(["bucket", "order_id"], ["orders.bucket", "orders.id"]),)

    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    product_id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str]
    quantity: Mapped[int]
    unit_price_cents: Mapped[int]

    order: Mapped[Order] = relationship(back_populates="items")
