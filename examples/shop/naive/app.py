"""The service: `granian --interface asgi shop.naive.app:app`."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.staticfiles import StaticFiles
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from shop import api
from shop.naive import orders, products, reports, sessions, users
from shop.naive.database import Session

app = FastAPI(title="Shop")
app.include_router(sessions.router)
app.include_router(products.router)
app.include_router(orders.router)
app.include_router(users.router)
app.include_router(reports.router)
app.mount("/static", StaticFiles(directory=Path(__file__).parent.parent / "static"))


@app.get("/health/live")
def live() -> api.Health:
    return api.Health(status="ok")


@app.get("/health/ready")
def ready() -> api.Health:
    try:
        with Session() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise HTTPException(503, "The database cannot be reached") from error
    return api.Health(status="ok")
