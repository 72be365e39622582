"""The shop's API in types: what every variant accepts and answers. Money is in cents."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

Month = Annotated[str, StringConstraints(pattern=r"^20\d\d-(0[1-9]|1[0-2])$")]
Email = Annotated[str, StringConstraints(pattern=r"^[^\x00@\s]+@[^\x00@\s]+$", max_length=200)]
Identifier = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Credentials(BaseModel):
    email: Email
    password: str = Field(max_length=200)


class Token(BaseModel):
    """Sent back as ``Authorization: Bearer <token>``."""

    token: str


class Product(BaseModel):
    id: int
    name: str
    description: str
    category: str
    price_cents: int
    stock: int


class ProductPage(BaseModel):
    """One page of the catalogue, newest product first; a page past the end is empty."""

    products: list[Product]
    page: int
    size: int
    total: int


class PopularProduct(BaseModel):
    id: int
    name: str
    price_cents: int
    sold: int


class PopularProducts(BaseModel):
    """The ten that sold most, best seller first."""

    products: list[PopularProduct]


class Line(BaseModel):
    product_id: Identifier
    quantity: int = Field(ge=1, le=100)


class NewOrder(BaseModel):
    """The lines to order; lines for the same product count as one."""

    items: list[Line] = Field(min_length=1, max_length=50)


class OrderLine(BaseModel):
    product_id: int
    name: str
    quantity: int
    unit_price_cents: int


class Order(BaseModel):
    id: int
    status: str
    total_cents: int
    created_at: datetime
    items: list[OrderLine]


class Orders(BaseModel):
    """The customer's ten newest orders, newest first."""

    orders: list[Order]


class Profile(BaseModel):
    id: int
    email: str
    name: str
    member_since: datetime
    orders: int


class ReportRequest(BaseModel):
    month: Month


class NewVideo(BaseModel):
    name: str = Field(min_length=1, max_length=100)
    segments: int = Field(ge=1, le=1000)


class TaskCreated(BaseModel):
    task_id: str


class Task(BaseModel):
    """``result`` is there once ``status`` is "finished"."""

    task_id: str
    status: Literal["queued", "running", "finished", "failed"]
    result: dict[str, Any] | None


class Health(BaseModel):
    status: Literal["ok"]
