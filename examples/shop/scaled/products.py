"""The catalogue."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query
from sqlalchemy import func, select

from shop import api
from shop.scaled.cache import cache
from shop.scaled.database import router as database
from shop.scaled.models import OrderItem, Product

router = APIRouter(prefix="/api/products")


@router.get("")
@cache.query(ttl=60, tags=["catalogue"])
def list_products(
    page: Annotated[int, Query(ge=1, le=10_000)] = 1,
    size: Annotated[int, Query(ge=1, le=100)] = 20,
) -> api.ProductPage:
    newest = select(Product).order_by(Product.created_at.desc(), Product.id.desc())
    with database.read() as session:
        total = session.scalar(select(func.count()).select_from(Product)) or 0
        products = session.scalars(newest.offset((page - 1) * size).limit(size))
        return api.ProductPage(
            products=[product_answer(product) for product in products], page=page, size=size, total=total
        )


@router.get("/popular")
@cache.query(ttl=60, tags=())  # an order more or less does not matter for a minute
def popular_products() -> api.PopularProducts:
    sold = func.sum(OrderItem.quantity)
    best = (
        select(Product, sold)
        .join(OrderItem, OrderItem.product_id == Product.id)
        .group_by(Product.id)
        .order_by(sold.desc(), Product.id)
        .limit(10)
    )
    with database.read() as session:
        return api.PopularProducts(
            products=[
                api.PopularProduct(
                    id=product.id, name=product.name, price_cents=product.price_cents, sold=count
                )
                for product, count in session.execute(best)
            ]
        )


@router.get("/{product_id}")
@cache.query(ttl=300, tags=["product:{product_id}"])
def show_product(product_id: Annotated[api.Identifier, Path()]) -> api.Product:
    with database.read() as session:
        product = session.get(Product, product_id)
        if product is None:
            raise HTTPException(404, f"No product {product_id}")
        return product_answer(product)


def product_answer(product: Product) -> api.Product:
    return api.Product(
        id=product.id,
        name=product.name,
        description=product.description,
        category=product.category,
        price_cents=product.price_cents,
        stock=product.stock,
    )
