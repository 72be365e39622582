"""A small library: two tables with a relation between them, on SQLite in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel
from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import StaticPool


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list[Book]] = relationship(cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))


class AuthorOut(BaseModel):
    name: str
    books: list[str]


@contextmanager
def open_library() -> Iterator[Engine]:
    """An engine with one author and one book."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Author(id=1, name="Ada", books=[Book(id=1, title="Notes")]))
        session.commit()
    yield engine
    engine.dispose()


class Count:
    """Counts the loads of a function."""

    def __init__(self) -> None:
        self.loads = 0

    def __call__(self, value: Any = None) -> Any:
        self.loads += 1
        return value
