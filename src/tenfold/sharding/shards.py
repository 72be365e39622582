"""What a shard is given as, and what its errors mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from tenfold.errors import BucketMovedError, CrossShardError, NoReplicaError, SettingsError, ShardDownError
from tenfold.redaction import redact

__all__ = ["HAS_MOVED", "Shard", "as_shard", "translate_error"]

HAS_MOVED = "the rows of this key are on another shard than this process knew: repeat it, or use run()"
_MOVED, _FOREIGN_ROW, _CHECK_VIOLATION = "TF001", "TF002", "23514"
_LOST = ("57P01", "57P02", "57P03")


class Shard(Protocol):
    """A :class:`~tenfold.database.DatabaseRouter`, or anything else with these methods."""

    def write(self) -> Any:
        """A session on the primary as a context manager, also for ``async with``; committed at its end."""

    def read(self) -> Any:
        """A session that only reads."""


def as_shard(name: str, given: Any) -> Shard:
    """Accept a router as it is, and engines and sessionmakers as a shard of one server.

    Raises:
        SettingsError: it is something else.
    """
    if hasattr(given, "write") and hasattr(given, "read"):
        return given  # type: ignore[no-any-return]
    if isinstance(given, Engine):
        return _Sessions(name, sessionmaker(given), None)
    if isinstance(given, AsyncEngine):
        return _Sessions(name, None, async_sessionmaker(given))
    if isinstance(given, sessionmaker):
        return _Sessions(name, given, None)
    if isinstance(given, async_sessionmaker):
        return _Sessions(name, None, given)
    raise SettingsError(
        f"shard {name} is a {type(given).__name__}: pass a DatabaseRouter, an engine or a sessionmaker"
    )


@dataclass(frozen=True, slots=True)
class _Sessions:
    """A shard that is a sessionmaker: every session is on its one server."""

    name: str
    sync: sessionmaker[Any] | None
    asynchronous: async_sessionmaker[Any] | None

    def write(self) -> Any:
        return _SessionScope(self)

    read = write


class _SessionScope:
    """A session, committed at the end of the block."""

    __slots__ = ("_maker", "_session")

    def __init__(self, maker: _Sessions) -> None:
        self._maker = maker

    def __enter__(self) -> Session:
        if self._maker.sync is None:
            raise SettingsError(f"shard {self._maker.name} has an engine for asyncio: write `async with`")
        self._session: Any = self._maker.sync()
        return self._session  # type: ignore[no-any-return]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self._session:
            if kind is None:
                self._session.commit()

    async def __aenter__(self) -> AsyncSession:
        if self._maker.asynchronous is None:
            raise SettingsError(f"shard {self._maker.name} has no engine for asyncio: write `with`")
        self._session = self._maker.asynchronous()
        return self._session  # type: ignore[no-any-return]

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        async with self._session:
            if kind is None:
                await self._session.commit()


def translate_error(error: BaseException, name: str, *, connecting: bool) -> BaseException:
    """What an error of SQLAlchemy means; the error itself, when it has nothing to do with shards.

    Args:
        name: of the shard.
        connecting: it came while the session was opened, so that an OSError is the driver's.
    """
    if isinstance(error, DBAPIError):
        origin: Any = error.orig
        state = str(getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None) or "")
        said = str(origin).strip().partition("\n")[0]
        if said.startswith("<class "):  # asyncpg's has its class before it
            said = said.partition(">: ")[2]
        if state == _MOVED:
            return BucketMovedError(HAS_MOVED)
        if state == _FOREIGN_ROW or (state == _CHECK_VIOLATION and "_bucket_of_key" in said):
            return CrossShardError(
                f"{redact(said)}; a transaction writes rows of one key: let an outbox task write the others"
            )
        is_lost = error.connection_invalidated or state[:2] == "08" or state in _LOST
        if is_lost or (not state and isinstance(error, OperationalError | InterfaceError)):
            return ShardDownError(f"shard {name} does not answer: {redact(said) or type(origin).__name__}")
    elif isinstance(error, NoReplicaError) and not isinstance(error.__cause__, PoolTimeoutError):
        return ShardDownError(f"shard {name} does not answer: {error}")
    elif connecting and isinstance(error, OSError):  # asyncpg's, when it cannot connect
        return ShardDownError(f"shard {name} does not answer: {error or type(error).__name__}")
    return error
