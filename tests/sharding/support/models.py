"""Sharded tables that the tests use, and a plain copy of them that holds all rows."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from sqlalchemy import BigInteger, DateTime, Double, ForeignKeyConstraint, Numeric, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenfold.sharding import Sharded, next_id


class Base(DeclarativeBase):
    pass


class Order(Sharded, Base):
    __tablename__ = "orders"
    __sharded_by__ = "user_id"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, server_default=next_id())
    user_id: Mapped[int] = mapped_column(BigInteger)
    total: Mapped[int] = mapped_column(default=0)
    price: Mapped[Decimal | None] = mapped_column(Numeric)
    weight: Mapped[float | None] = mapped_column(Double)
    note: Mapped[str | None] = mapped_column(String(collation="C"))
    plain: Mapped[str] = mapped_column(String, default="")
    placed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    lines: Mapped[list[Line]] = relationship(back_populates="order", order_by="Line.number")


class Line(Sharded, Base):
    __tablename__ = "lines"
    __sharded_by__ = ("user_id",)
    __table_args__ = (ForeignKeyConstraint(["bucket", "order_id"], ["orders.bucket", "orders.id"]),)

    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    product: Mapped[str]

    order: Mapped[Order] = relationship(back_populates="lines")


class Plain(DeclarativeBase):
    pass


class PlainOrder(Plain):
    """All rows of all shards: what queries over shards are compared with."""

    __tablename__ = "plain_orders"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger)
    total: Mapped[int]
    price: Mapped[Decimal | None] = mapped_column(Numeric)
    weight: Mapped[float | None] = mapped_column(Double)
    note: Mapped[str | None] = mapped_column(String(collation="C"))
    plain: Mapped[str]
    placed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
