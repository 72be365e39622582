"""FastAPI with sync endpoints and SQLAlchemy: one cause, by LAB_CAUSE; the remedied twin has none."""

import os
import random
import threading
import time
import urllib.request

from fastapi import FastAPI
from sqlalchemy import Update, create_engine, select, text, update
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.pool import NullPool

from database import Author, Book, url

CAUSE = os.environ["LAB_CAUSE"]
REMEDIED = bool(os.environ.get("LAB_REMEDIED"))
N = int(os.environ.get("LAB_N", "0"))
SECONDS = float(os.environ.get("LAB_SECONDS", "0"))
POOL = int(os.environ.get("LAB_POOL", "5"))
REMOTE = os.environ.get("LAB_REMOTE", "")

app = FastAPI()
if CAUSE == "connect" and not REMEDIED:
    engine = create_engine(url(), poolclass=NullPool)
else:
    engine = create_engine(url(), pool_size=POOL, max_overflow=0, pool_timeout=10)


def visit(author: int) -> Update:
    """Return the statement that counts a visit."""
    return update(Author).where(Author.id == author).values(visits=Author.visits + 1)


def call_remote() -> None:
    """Ask another service."""
    # CAUSE of the next line: threads_wait held_during_call row_lock_idle two_held
    urllib.request.urlopen(REMOTE, timeout=20).read()


@app.get("/health/ready")
def ready() -> dict[str, str]:
    """Answer."""
    return {}


@app.get("/n_plus_one")
def n_plus_one() -> list[dict[str, object]]:
    """Load the books of some authors."""
    with Session(engine) as session:
        first = random.randint(1, 100)
        query = select(Author).where(Author.id.between(first, first + N))
        if REMEDIED:
            query = query.options(selectinload(Author.books))
        return [
            {"name": author.name, "books": len(author.books)}  # CAUSE n_plus_one
            for author in session.scalars(query)
        ]


@app.get("/missing_index")
def missing_index() -> list[str]:
    """Find the books of a shelf."""
    with Session(engine) as session:
        shelf = random.randint(0, 3000)
        return list(session.scalars(select(Book.title).where(Book.shelf == shelf)))  # CAUSE missing_index


@app.get("/connect")
def connect() -> int:
    """Count with one look-up."""
    with Session(engine) as session:
        return session.scalar(select(Author.visits).where(Author.id == 7)) or 0  # CAUSE connect


@app.get("/row_lock")
def row_lock() -> int:
    """Count a visit of the one author, and work meanwhile."""
    author = random.randint(1, 200) if REMEDIED else 1
    with Session(engine) as session:
        session.execute(visit(author))  # CAUSE row_lock
        session.execute(text("SELECT pg_sleep(:s)"), {"s": SECONDS})
        session.commit()
    return author


@app.get("/row_lock_idle")
def row_lock_idle() -> int:
    """Count a visit, and ask another service before the commit."""
    with Session(engine) as session:
        if REMEDIED:
            call_remote()
        session.execute(visit(1))  # CAUSE row_lock_idle
        if not REMEDIED:
            call_remote()
        session.commit()
    return 1


@app.get("/threads_wait")
def threads_wait() -> str:
    """Ask another service."""
    if not REMEDIED:
        call_remote()
    return "done"


@app.get("/held_during_call")
def held_during_call() -> str:
    """Ask another service while a connection is checked out."""
    with Session(engine) as session:
        name = session.scalar(select(Author.name).where(Author.id == 7))
        if not REMEDIED:
            call_remote()
    if REMEDIED:
        call_remote()
    return name or ""


@app.get("/second_connection")
def second_connection() -> int:
    """Look up twice, with two connections at once."""
    with Session(engine) as session:
        first = session.scalar(select(Author.visits).where(Author.id == 7)) or 0
        time.sleep(0.002)
        if REMEDIED:
            return first + (session.scalar(select(Author.visits).where(Author.id == 8)) or 0)
        with Session(engine) as other:
            return first + (
                other.scalar(select(Author.visits).where(Author.id == 8)) or 0
            )  # CAUSE second_connection


@app.get("/commits")
def commits() -> int:
    """Write some rows, each in a transaction of its own."""
    with Session(engine) as session:
        for _ in range(N):
            session.execute(visit(random.randint(1, 200)))
            if not REMEDIED:
                session.commit()  # CAUSE commits
        session.commit()
    return N


@app.get("/gil")
def gil() -> int:
    """Answer at once, beside a thread that computes."""
    total = 0
    for n in range(4000):
        total += n
    return total


def burn() -> None:
    """Compute for ever."""
    while True:
        sum(n * n for n in range(50_000))  # CAUSE gil


if CAUSE == "gil" and not REMEDIED:
    threading.Thread(target=burn, daemon=True).start()


@app.get("/two_database")
def two_database() -> int:
    """Look shelves up in a loop, without an index."""
    with Session(engine) as session:
        shelves = [random.randint(0, 3000) for _ in range(N)]
        if REMEDIED:
            return len(session.scalars(select(Book.id).where(Book.shelf.in_(shelves))).all())
        return sum(
            len(session.scalars(select(Book.id).where(Book.shelf == shelf)).all())  # CAUSE two_database
            for shelf in shelves
        )


@app.get("/two_held")
def two_held() -> str:
    """Hold a connection for a look-up without an index, and for a call."""
    with Session(engine) as session:
        shelf = random.randint(0, 3000)
        books = session.scalars(select(Book.title).where(Book.shelf == shelf)).all()
        if not REMEDIED:
            call_remote()
    return str(len(books))
