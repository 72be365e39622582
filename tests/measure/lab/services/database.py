"""Tables that the services of the lab share, and how they are filled."""

import os

from sqlalchemy import ForeignKey, create_engine, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

ROWS = int(os.environ.get("LAB_ROWS", "20000"))


def url(driver: str = "psycopg") -> str:
    """Return the stack's database for SQLAlchemy with a driver."""
    return os.environ["DATABASE_URL"].replace("postgresql://", f"postgresql+{driver}://")


class Base(DeclarativeBase):
    """The tables."""


class Author(Base):
    """An author of books."""

    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    visits: Mapped[int] = mapped_column(default=0)
    books: Mapped[list["Book"]] = relationship(back_populates="author")


class Book(Base):
    """A book of an author. ``shelf`` has no index on purpose."""

    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    shelf: Mapped[int]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"), index=True)
    author: Mapped[Author] = relationship(back_populates="books")


def load() -> None:
    """Create the tables and fill them."""
    engine = create_engine(url())
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        authors = [{"id": n, "name": f"author {n}", "visits": 0} for n in range(1, 201)]
        connection.execute(insert(Author), authors)
        for start in range(0, ROWS, 5000):
            books = [
                {"title": f"book {n}", "shelf": n % (ROWS // 5), "author_id": n % 200 + 1}
                for n in range(start, start + 5000)
            ]
            connection.execute(insert(Book), books)
        if os.environ.get("LAB_INDEX"):
            connection.exec_driver_sql("CREATE INDEX ON books (shelf)")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    engine.dispose()
