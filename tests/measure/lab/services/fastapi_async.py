"""FastAPI with async endpoints: one cause, by LAB_CAUSE; the remedied twin has none."""

import asyncio
import hashlib
import os
import random
import time
import urllib.request

import asyncpg
import httpx
from fastapi import FastAPI, Response
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import selectinload

from database import Author, Book, url

CAUSE = os.environ["LAB_CAUSE"]
REMEDIED = bool(os.environ.get("LAB_REMEDIED"))
N = int(os.environ.get("LAB_N", "0"))
SECONDS = float(os.environ.get("LAB_SECONDS", "0"))
POOL = int(os.environ.get("LAB_POOL", "5"))
REMOTE = os.environ.get("LAB_REMOTE", "")
DRIVER = os.environ.get("LAB_DRIVER", "asyncpg")

app = FastAPI()
engine = create_async_engine(url(DRIVER), pool_size=POOL, max_overflow=0)
client = httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=500))
turn = asyncio.Lock()
kept: list[object] = []
pools: list[asyncpg.Pool] = []
cache: dict[int, str] = {}


class Price(BaseModel):
    """A price with its currency."""

    amount: float
    currency: str = "EUR"
    note: str | None = None


class Item(BaseModel):
    """An item of an answer."""

    number: int
    title: str
    prices: list[Price]


items = [Item(number=n, title="t", prices=[Price(amount=1.0)]) for n in range(N)]


@app.get("/health/ready")
async def ready() -> dict[str, str]:
    """Answer."""
    return {}


@app.get("/blocking_call")
async def blocking_call() -> str:
    """Ask another service, on the loop."""
    if REMEDIED:
        await client.get(REMOTE)
    else:
        urllib.request.urlopen(REMOTE, timeout=20).read()  # CAUSE blocking_call
    return "done"


@app.get("/blocking_sleep")
async def blocking_sleep() -> str:
    """Wait, on the loop."""
    if REMEDIED:
        await asyncio.sleep(SECONDS)
    else:
        time.sleep(SECONDS)  # CAUSE blocking_sleep
    return "done"


@app.get("/password_hash")
async def password_hash() -> str:
    """Check a password, on the loop."""
    rounds = 1_000 if REMEDIED else N
    return hashlib.pbkdf2_hmac("sha256", b"secret", os.urandom(16), rounds).hex()  # CAUSE password_hash


@app.get("/serialisation", response_model=list[Item])
async def serialisation() -> list[Item]:
    """Answer with many objects."""
    return items[: N // 20] if REMEDIED else items


@app.get("/over_fetching")
async def over_fetching() -> list[str]:
    """Show twenty books of thousands."""
    async with AsyncSession(engine) as session:
        query = select(Book).where(Book.id <= N)
        if REMEDIED:
            query = query.limit(20)
        books = (await session.scalars(query)).all()  # CAUSE over_fetching
        return [book.title for book in books[:20]]


@app.get("/n_plus_one_async")
async def n_plus_one_async() -> dict[str, int]:
    """Load the books of some authors."""
    async with AsyncSession(engine) as session:
        first = random.randint(1, 100)
        query = select(Author).where(Author.id.between(first, first + N))
        if REMEDIED:
            query = query.options(selectinload(Author.books))
        counts = {}
        for author in (await session.scalars(query)).all():
            if REMEDIED:
                counts[author.name] = len(author.books)
            else:
                books = select(Book).where(Book.author_id == author.id)
                counts[author.name] = len((await session.scalars(books)).all())  # CAUSE n_plus_one_async
        return counts


@app.get("/client_per_request")
async def client_per_request() -> str:
    """Ask another service with a client that is made for it."""
    if REMEDIED:
        await client.get(REMOTE)
    else:
        async with httpx.AsyncClient() as own:  # CAUSE client_per_request
            await own.get(REMOTE)
    return "done"


@app.get("/lock")
async def lock() -> str:
    """Wait within a lock of the process."""
    if REMEDIED:
        await asyncio.sleep(SECONDS)
        return "done"
    async with turn:  # CAUSE lock
        await asyncio.sleep(SECONDS)
    return "done"


@app.get("/remote_limit")
async def remote_limit() -> str:
    """Ask a service that answers one call at a time."""
    if not REMEDIED or random.random() < 0.2:
        await client.get(REMOTE)  # CAUSE remote_limit
    return "done"


@app.get("/held_async")
async def held_async() -> str:
    """Ask another service while a connection is checked out."""
    async with AsyncSession(engine) as session:
        name = await session.scalar(select(Author.name).where(Author.id == 7))
        if not REMEDIED:
            await client.get(REMOTE)  # CAUSE held_async
    if REMEDIED:
        await client.get(REMOTE)
    return name or ""


@app.get("/asyncpg_pool")
async def asyncpg_pool() -> str:
    """Ask another service while a connection of asyncpg's own pool is checked out."""
    if not pools:
        address = os.environ["DATABASE_URL"]
        pools.append(await asyncpg.create_pool(address, min_size=POOL, max_size=POOL))
    async with pools[0].acquire() as connection:
        name = await connection.fetchval("SELECT name FROM authors WHERE id = 7")
        if not REMEDIED:
            await client.get(REMOTE)  # CAUSE asyncpg_pool
    if REMEDIED:
        await client.get(REMOTE)
    return str(name)


@app.get("/memory")
async def memory() -> str:
    """Keep something of each request."""
    if not REMEDIED:
        kept.append([bytearray(1000) for _ in range(N)])  # CAUSE memory
    return "done"


@app.get("/plain_cpu")
async def plain_cpu() -> int:
    """Compute."""
    total = 0
    for n in range(N // 10 if REMEDIED else N):
        total += n * n  # CAUSE plain_cpu
    return total


@app.get("/two_cpu")
async def two_cpu() -> str:
    """Compute a password hash, and something else."""
    if not REMEDIED:
        hashlib.pbkdf2_hmac("sha256", b"secret", os.urandom(16), N)  # CAUSE two_cpu
    total = 0
    for n in range(0 if REMEDIED else 8 * N):
        total += n * n  # CAUSE two_cpu
    return str(total)


@app.get("/two_blocking")
async def two_blocking() -> str:
    """Wait on the loop, twice."""
    if not REMEDIED:
        time.sleep(SECONDS)  # CAUSE two_blocking
        urllib.request.urlopen(REMOTE, timeout=20).read()  # CAUSE two_blocking
    return "done"


def part_a(n: int) -> float:
    """One of many small parts."""
    return sum(i * 0.5 for i in range(n))


def part_b(n: int) -> str:
    """One of many small parts."""
    return "".join(chr(97 + i % 26) for i in range(n))


def part_c(n: int) -> dict[str, int]:
    """One of many small parts."""
    return {str(i): i for i in range(n // 2)}


def part_d(n: int) -> list[int]:
    """One of many small parts."""
    return sorted((i * 7919) % 1009 for i in range(n // 2))


def part_e(n: int) -> int:
    """One of many small parts."""
    return len([i for i in range(n) if i % 3])


def part_f(n: int) -> set[int]:
    """One of many small parts."""
    return {i % 97 for i in range(n)}


def part_g(n: int) -> int:
    """One of many small parts."""
    return max((i * 31) % 127 for i in range(n))


def part_h(n: int) -> bytes:
    """One of many small parts."""
    return bytes(i % 256 for i in range(n))


@app.get("/healthy_cpu")
async def healthy_cpu() -> int:
    """Do a little of many things: nothing stands out."""
    parts = (part_a, part_b, part_c, part_d, part_e, part_f, part_g, part_h)
    return sum(1 for part in parts if part(N))


@app.get("/healthy_fast")
async def healthy_fast() -> Response:
    """Answer."""
    return Response("ok")


@app.get("/healthy_cache")
async def healthy_cache() -> str:
    """Keep the last thousand texts."""
    number = random.randint(0, 999)
    if number not in cache:
        cache[number] = "x" * 20_000
    return cache[number][:10]
