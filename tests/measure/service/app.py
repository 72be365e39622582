"""A service with known mistakes. The tests look lines up by the marks in their comments."""

import asyncio
import os
import threading
import time

from fastapi import APIRouter, FastAPI
from fastapi.responses import StreamingResponse
from models import Base, Item, Order
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.pool import NullPool

engine = create_engine(os.environ["DATABASE_URL"], pool_size=1, max_overflow=1)  # mark: pool
waiting = create_async_engine(os.environ["ASYNC_DATABASE_URL"])
direct = create_engine(os.environ["DATABASE_URL"], poolclass=NullPool)
kept: list[bytearray] = []
small = create_engine(os.environ["DATABASE_URL"], pool_size=1, max_overflow=0, pool_timeout=6)  # mark: small
unset = threading.Event()
app = FastAPI()
router = APIRouter(prefix="/inner")


def prepare() -> None:
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Order(id=n, customer=n % 4, items=[Item(name="x")]) for n in range(1, 101))
        session.commit()


@app.get("/lazy/{customer}")
def lazy(customer: int) -> int:
    with Session(engine) as session:
        orders = session.scalars(select(Order).where(Order.customer == customer)).all()
        return sum(len(order.items) for order in orders)  # mark: lazy


@app.get("/eager/{customer}")
def eager(customer: int) -> int:
    query = select(Order).where(Order.customer == customer).options(selectinload(Order.items))
    with Session(engine) as session:
        return sum(len(order.items) for order in session.scalars(query))


@app.get("/loop")
def loop() -> int:
    with Session(engine) as session:
        total = 0
        for number in range(25):
            total += session.scalar(count(number)) or 0  # mark: loop
        return total


@app.get("/four")
def four() -> int:
    with Session(engine) as session:
        return sum(session.scalar(count(number)) or 0 for number in range(4))  # mark: four


@app.get("/async")
async def asynchronous() -> int:
    async with AsyncSession(waiting) as session:
        total = 0
        for number in range(25):
            total += await session.scalar(count(number)) or 0  # mark: async
        return total


@app.get("/hold")
def hold() -> str:
    with Session(engine) as session:
        session.execute(select(1))
        time.sleep(0.1)
    return "held"


@app.get("/blocked")
async def blocked() -> str:
    time.sleep(0.2)  # mark: blocked
    return "done"


@app.get("/stuck")
def stuck() -> str:
    unset.wait(6)  # mark: stuck
    return "late"


@app.get("/stuck-async")
async def stuck_async() -> str:
    await asyncio.wait_for(asyncio.Event().wait(), 6)  # mark: stuck async
    return "late"


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def parts():
        for _ in range(8):
            yield b"part"
            await asyncio.sleep(0.4)

    return StreamingResponse(parts())


@app.get("/nested")
def nested() -> str:
    with Session(small) as outer:
        outer.execute(select(1))
        with Session(small) as inner:
            inner.execute(select(1))  # mark: nested
    return "done"


@app.get("/keeps")
def keeps() -> str:
    kept.append(bytearray(50_000))  # mark: keeps
    return "done"


@app.get("/frozen")
async def frozen() -> str:
    time.sleep(5)  # mark: frozen
    return "done"


@app.get("/engine")
def own_engine() -> str:
    own = create_engine(os.environ["DATABASE_URL"])  # mark: engine
    with Session(own) as session:
        session.execute(select(1))
    own.dispose()
    return "done"


@app.get("/unpooled")
def unpooled() -> str:
    with Session(direct) as session:
        session.execute(select(1))  # mark: unpooled
    return "done"


@app.get("/broken")
def broken() -> None:
    with Session(engine) as session:
        session.execute(text("SELECT nothing FROM nowhere"))


@app.get("/quick")
async def quick() -> str:
    await asyncio.sleep(0)
    return "ok"


@router.get("/{name}/orders")
def inner(name: str) -> str:
    return name


def count(number: int):
    return select(func.count()).select_from(Item).where(Item.order_id == number)


app.include_router(router, prefix="/outer")
