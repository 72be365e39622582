"""Actions after a commit, and none after a rollback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from tenfold.commits import after_commit, find_action, sync_session
from tenfold.errors import CommitUnknownError


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as connection:
        connection.execute(text("create table t (id int primary key)"))
    yield engine
    engine.dispose()


def insert(session: Session, number: int) -> None:
    session.execute(text("insert into t values (:n)"), {"n": number})


def test_action_runs_once_after_the_commit(engine: Engine) -> None:
    ran: list[int] = []
    with Session(engine) as session:
        insert(session, 1)
        after_commit(session, lambda: ran.append(1))
        assert ran == []
        session.commit()
        assert ran == [1]
        insert(session, 2)
        session.commit()
        assert ran == [1]


def test_rollback_drops_actions_of_its_transaction_only(engine: Engine) -> None:
    ran: list[int] = []
    with Session(engine) as session:
        for number, end in enumerate((session.rollback, session.commit, session.rollback, session.commit)):
            insert(session, number)
            after_commit(session, lambda number=number: ran.append(number))  # type: ignore[misc]
            end()
    assert ran == [1, 3]


def test_close_without_a_commit_drops_them(engine: Engine) -> None:
    ran: list[int] = []
    with Session(engine) as session:
        insert(session, 1)
        after_commit(session, lambda: ran.append(1))
    session.execute(text("select 1"))
    session.commit()
    assert ran == []


def test_savepoints_do_not_run_actions(engine: Engine) -> None:
    ran: list[int] = []
    with Session(engine) as session:
        with session.begin_nested():
            after_commit(session, lambda: ran.append(1))
        assert ran == [], "a released savepoint is no commit"
        session.rollback()
        assert ran == []
        nested = session.begin_nested()
        after_commit(session, lambda: ran.append(2))
        nested.rollback()
        session.commit()
    assert ran == [2]


def test_failed_commit_runs_nothing(engine: Engine) -> None:
    ran: list[int] = []
    with Session(engine) as session:
        after_commit(session, lambda: ran.append(1))
        insert(session, 1)

        @event.listens_for(session, "before_commit")
        def fail(_: Session) -> None:
            raise RuntimeError("a constraint")

        with pytest.raises(RuntimeError):
            session.commit()
        session.rollback()
    assert ran == []


@pytest.mark.parametrize("kind", [CommitUnknownError, OperationalError])
def test_commit_of_unknown_outcome_runs_them(engine: Engine, kind: type[Exception]) -> None:
    """It may have been committed: what depends on it has to be told."""
    ran: list[int] = []

    def lose(_: object) -> None:
        if kind is CommitUnknownError:
            raise CommitUnknownError("lost")
        raise OperationalError("COMMIT", {}, Exception("lost"), connection_invalidated=True)

    engine.dialect.do_commit = lose  # type: ignore[method-assign, assignment]
    with Session(engine) as session:
        insert(session, 1)
        after_commit(session, lambda: ran.append(1))
        with pytest.raises(kind):
            session.commit()
        session.rollback()
    assert ran == [1]


def test_key_replaces_and_finds(engine: Engine) -> None:
    ran: list[int] = []
    with Session(engine) as session:
        assert find_action(session, "k") is None
        after_commit(session, lambda: ran.append(1), key="k")
        after_commit(session, lambda: ran.append(2), key="k")
        assert find_action(session, "k") is not None
        insert(session, 1)
        session.commit()
        assert ran == [2] and find_action(session, "k") is None


def test_scoped_sessions(engine: Engine) -> None:
    ran: list[int] = []
    scoped = scoped_session(sessionmaker(engine))
    scoped.execute(text("insert into t values (1)"))
    after_commit(scoped, lambda: ran.append(1))
    scoped.commit()
    scoped.remove()
    assert ran == [1]


def test_async_sessions() -> None:
    ran: list[str] = []

    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        async with AsyncSession(engine) as session:
            await session.execute(text("select 1"))
            after_commit(session, lambda: ran.append("dropped"))
            await session.rollback()
            await session.execute(text("select 1"))
            after_commit(session, lambda: ran.append("plain"))
            await session.commit()
        scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        await scoped.execute(text("select 1"))
        after_commit(scoped, lambda: ran.append("scoped"))
        await scoped.commit()
        await scoped.remove()
        await engine.dispose()

    asyncio.run(main())
    assert ran == ["plain", "scoped"]


def test_connections_are_refused(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(TypeError, match="a Connection has no event after"):
        sync_session(connection)
