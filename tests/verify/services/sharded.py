"""Notes of users on shards: `careful` does it with tenfold, `careless` as it is often done."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import BigInteger, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tenfold.sharding import DirectoryStore, Sharded, ShardedDatabase, next_id, parse_shard_urls


class Base(DeclarativeBase):
    pass


class Note(Sharded, Base):
    __tablename__ = "notes"
    __sharded_by__ = "user_id"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, server_default=next_id())
    user_id: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[str]


def driven(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def urls() -> dict[str, str]:
    return parse_shard_urls(os.environ["SHARD_URLS"])


def prepare() -> None:
    """Sharded tables with notes of 200 users."""
    store = DirectoryStore(os.environ["SHARD_DIRECTORY_URL"])
    directory = store.load()
    store.close()
    for name, url in urls().items():
        engine = create_engine(driven(url))
        with engine.begin() as connection:
            Base.metadata.create_all(connection)
            rows = [
                {"id": user, "user_id": user, "bucket": place.bucket, "value": "old"}
                for user in range(1000, 1200)
                if (place := directory.place(user)).shard == name
            ]
            connection.execute(Note.__table__.insert(), rows)
        engine.dispose()


def prepare_carelessly() -> None:
    """A table without guards, whose rows are all on one shard."""
    for number, url in enumerate(urls().values()):
        engine = create_engine(driven(url))
        with engine.begin() as connection:
            connection.execute(
                text("create table notes (id bigserial primary key, user_id int, bucket int2, value text)")
            )
            connection.execute(text("insert into tenfold.tables values ('notes', array['user_id'])"))
            if not number:
                connection.execute(
                    text("insert into notes (user_id, bucket) select n, 7 from generate_series(1, 200) n")
                )
        engine.dispose()


def app_of(write: Any, read: Any, errors: type[Exception]) -> Starlette:
    async def login(request: Request) -> JSONResponse:
        answer = JSONResponse({})
        answer.set_cookie("user", (await request.json())["user"], httponly=True, samesite="lax")
        return answer

    async def post(request: Request) -> JSONResponse:
        value = (await request.json())["value"]
        await run_in_threadpool(write, int(request.cookies["user"]), value)
        return JSONResponse({}, 201)

    async def get(request: Request) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(read, int(request.cookies.get("user", 0))))

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503, headers={"Retry-After": "1"})

    return Starlette(
        routes=[
            Route("/login", login, methods=["POST"]),
            Route("/notes", post, methods=["POST"]),
            Route("/notes", get),
            Route("/health/ready", lambda request: JSONResponse({})),
        ],
        exception_handlers={errors: refuse},
    )


def careful() -> Starlette:
    from tenfold.database import DatabaseRouter
    from tenfold.errors import ShardingError

    routers = {name: DatabaseRouter(url, metrics=False) for name, url in urls().items()}
    database = ShardedDatabase(os.environ["SHARD_DIRECTORY_URL"], routers)

    def write(user: int, value: str) -> None:
        database.run(user, lambda session: session.add(Note(user_id=user, value=value)))

    def read(user: int) -> list[str]:
        query = select(Note.value).where(Note.user_id == user).order_by(Note.id.desc()).limit(10)
        return database.run(user, lambda session: list(session.scalars(query)), read_only=True)

    return app_of(write, read, ShardingError)


def careless() -> Starlette:
    """The shard is the key modulo their number, nothing is checked, and each request looks at all of them."""
    engines = [create_engine(driven(url), pool_pre_ping=True) for url in urls().values()]

    def write(user: int, value: str) -> None:
        for engine in engines:
            with Session(engine) as session:
                session.execute(text("select count(*) from notes"))
        with Session(engines[user % len(engines)]) as session:
            session.execute(
                text("insert into notes (user_id, bucket, value) values (:user, 7, :value)"),
                {"user": user, "value": value},
            )
            session.commit()

    def read(user: int) -> list[str]:
        with Session(engines[user % len(engines)]) as session:
            query = text("select value from notes where user_id = :user order by id desc limit 10")
            return list(session.scalars(query, {"user": user}))

    return app_of(write, read, ZeroDivisionError)
