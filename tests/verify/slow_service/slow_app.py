"""A service with one slow statement and one fast one."""

from __future__ import annotations

import os

from fastapi import FastAPI
from sqlalchemy import create_engine, text

engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))
app = FastAPI()


@app.get("/slow")
def slow() -> int:
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(0.15)"))
    return 1


@app.get("/fast")
def fast() -> int:
    with engine.connect() as connection:
        return connection.execute(text("SELECT 1")).scalar_one()
