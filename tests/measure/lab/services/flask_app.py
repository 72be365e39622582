"""Flask: one cause, by LAB_CAUSE."""

import os
import random
import urllib.request

from flask import Flask
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, selectinload

from database import Author, url

REMEDIED = bool(os.environ.get("LAB_REMEDIED"))
N = int(os.environ.get("LAB_N", "0"))
REMOTE = os.environ.get("LAB_REMOTE", "")

app = Flask(__name__)
engine = create_engine(url(), pool_size=int(os.environ.get("LAB_POOL", "10")), max_overflow=0)


@app.get("/health/ready")
def ready() -> str:
    """Answer."""
    return ""


@app.get("/flask_cpu")
def flask_cpu() -> str:
    """Compute."""
    total = 0
    for n in range(N // 10 if REMEDIED else N):
        total += n * n  # CAUSE flask_cpu
    return str(total)


@app.get("/flask_threads")
def flask_threads() -> str:
    """Ask another service."""
    if not REMEDIED:
        urllib.request.urlopen(REMOTE, timeout=20).read()  # CAUSE flask_threads
    return "done"


@app.get("/flask_n_plus_one")
def flask_n_plus_one() -> dict[str, int]:
    """Load the books of some authors."""
    with Session(engine) as session:
        first = random.randint(1, 100)
        query = select(Author).where(Author.id.between(first, first + N))
        if REMEDIED:
            query = query.options(selectinload(Author.books))
        return {author.name: len(author.books) for author in session.scalars(query)}  # CAUSE flask_n_plus_one
