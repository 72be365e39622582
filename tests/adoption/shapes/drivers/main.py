"""Every way to the database: drivers alone, and under SQLAlchemy."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import psycopg
from fastapi import FastAPI
from psycopg import sql
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

URL = os.environ["DATABASE_URL"]
async_engine = create_async_engine(URL.replace("postgresql:", "postgresql+asyncpg:"))
psycopg_engine = create_engine(URL.replace("postgresql:", "postgresql+psycopg:"))
psycopg2_engine = create_engine(URL.replace("postgresql:", "postgresql+psycopg2:"))
sqlite_engine = create_engine("sqlite://")
state = {}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(URL, min_size=1) as state["pool"]:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/asyncpg")
async def over_asyncpg() -> int:
    for number in range(6):
        await state["pool"].fetchval("SELECT $1::int", number)  # mark: asyncpg
    return 6


@app.get("/prepared")
async def over_prepared() -> int:
    async with state["pool"].acquire() as connection, connection.transaction():
        prepared = await connection.prepare("SELECT $1::int")
        return await prepared.fetchval(1)  # mark: prepared


@app.get("/psycopg")
def over_psycopg() -> int:
    with psycopg.connect(URL) as connection:
        connection.execute(sql.SQL("SELECT 1 AS {}").format(sql.Identifier("one")))  # mark: psycopg
    return 1


@app.get("/async-psycopg")
async def over_async_psycopg() -> int:
    async with await psycopg.AsyncConnection.connect(URL) as connection, connection.cursor() as cursor:
        await cursor.execute("SELECT 1")  # mark: async psycopg
    return 1


@app.get("/sqlalchemy-asyncpg")
async def over_sqlalchemy() -> int:
    async with async_engine.connect() as connection:
        return (await connection.execute(text("SELECT 1"))).scalar_one()  # mark: sqlalchemy asyncpg


@app.get("/sqlalchemy-psycopg")
def over_sqlalchemy_psycopg() -> int:
    with psycopg_engine.connect() as connection:
        return connection.execute(text("SELECT 1")).scalar_one()  # mark: sqlalchemy psycopg


@app.get("/many")
def many() -> int:
    with psycopg2_engine.begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE many (n int) ON COMMIT DROP"))
        connection.execute(text("INSERT INTO many VALUES (:n)"), [{"n": 1}, {"n": 2}])  # mark: many
    return 2


@app.get("/sqlite")
def over_sqlite() -> int:
    with sqlite_engine.connect() as connection:
        return connection.execute(text("SELECT 1 AS lite")).scalar_one()  # mark: sqlite
