"""Sessions in PostgreSQL or SQLite through SQLAlchemy: where there is no Redis, and sessions are read rarely.

Every method is one statement in autocommit, a conflict or a new member of a group one more. Lifetimes are
measured by the database's clock, so that instances whose clocks differ agree. What is over stays in the table
until :meth:`SQLStore.sweep` is called: from a scheduled task, say every ten minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tenfold.breaker import Breaker
from tenfold.errors import DependencyError, SessionStoreError, SettingsError
from tenfold.sessions.stores.store import Stored

try:
    from sqlalchemy import Connection, Engine, MetaData
    from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.schema import CreateIndex, CreateTable
except ImportError:
    raise DependencyError("sessions in a database need SQLAlchemy: pip install 'tenfold[database]'") from None

from tenfold.sessions.stores.sqlalchemy_statements import Statements

__all__ = ["SQLStore"]

Answer = TypeVar("Answer")


class SQLStore:
    """A :class:`tenfold.sessions.stores.store.Store` in two tables. For one event loop.

    Each call has a task, or with an :class:`~sqlalchemy.Engine` a thread, of its own: when its time is over
    the caller is told at once, while the database driver may take longer to let go.

    Args:
        engine: of PostgreSQL or SQLite; its pool is shared with whoever else uses it, and not closed by us.
        table: the name of the table of sessions; that of groups has ``_groups`` behind it.
        timeout_s: for everything that one call does, waiting for a connection of the pool included.
        threads: how many calls at once, where the engine is not an asynchronous one.
        breaker: when to stop asking; by default after 3 failures in a row, for one to one and a half seconds.

    Raises:
        SettingsError: the database is neither PostgreSQL nor SQLite.
    """

    def __init__(
        self,
        engine: AsyncEngine | Engine,
        *,
        table: str = "tenfold_sessions",
        timeout_s: float = 1.0,
        threads: int = 8,
        breaker: Breaker | None = None,
    ) -> None:
        if engine.dialect.name not in ("postgresql", "sqlite"):
            raise SettingsError(f"SQLStore works on PostgreSQL and SQLite, not on {engine.dialect.name}")
        self.metadata = MetaData()  # for Alembic: one more of its target_metadata
        self._statements = Statements(self.metadata, table, engine.dialect.name)
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._threads = (
            ThreadPoolExecutor(threads, "tenfold-sessions") if isinstance(engine, Engine) else None
        )
        self._timeout_s = timeout_s
        self._breaker = breaker or Breaker(failures=3)
        self._under_way: set[asyncio.Future[Any]] = set()
        self._table = table

    def ddl(self) -> str:
        """What :meth:`create_tables` would run, for migrations that are written by hand."""
        dialect = self._engine.dialect
        tables = self.metadata.sorted_tables
        texts = [str(CreateTable(table).compile(dialect=dialect)).strip() for table in tables]
        indexes = [
            index for table in tables for index in sorted(table.indexes, key=lambda index: str(index.name))
        ]
        texts += [str(CreateIndex(index).compile(dialect=dialect)).strip() for index in indexes]
        return ";\n\n".join(texts) + ";\n"

    async def create_tables(self) -> None:
        """Create the tables that are not there yet; not bounded by ``timeout_s``."""
        await self._run(self.metadata.create_all)

    async def read(self, handle: str) -> Stored | None:
        """One SELECT by primary key."""
        return (await self.read_many([handle]))[0]

    async def read_many(self, handles: Sequence[str]) -> list[Stored | None]:
        """One SELECT."""
        if not handles:
            return []
        rows = await self._rows(self._statements.read, handles=list(handles))
        found = {handle: Stored(version, bytes(payload)) for handle, version, payload in rows}
        return [found.get(handle) for handle in handles]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        """One INSERT; what has expired is overwritten."""
        rows = await self._rows(self._statements.create, handle=handle, payload=payload, ttl_ms=_ms(ttl_s))
        return bool(rows)

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | Stored | None:
        """One UPDATE … WHERE version; a SELECT if it changed nothing."""
        written = await self._rows(
            self._statements.replace, name=handle, payload=payload, expected=version, ttl_ms=_ms(ttl_s)
        )
        return True if written else await self.read(handle)

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        """One INSERT … ON CONFLICT DO UPDATE: a tombstone is a row of version 0."""
        await self._rows(self._statements.revoke, handle=handle, payload=b"", ttl_ms=_ms(ttl_s))

    async def enlist(
        self, group: str, handle: str, *, ttl_s: float, instead_of: Sequence[str] = ()
    ) -> list[str]:
        """One DELETE of what is over, one INSERT … ON CONFLICT DO UPDATE; a SELECT if that was refused.

        Several at the same moment may overfill a group by as many.
        """
        await self._rows(self._statements.trim, name=group, handles=list(instead_of))
        told = {"name": group, "group": group, "handle": handle, "ttl_ms": _ms(ttl_s)}
        if await self._rows(self._statements.enlist, **told):
            return []
        return [member for (member,) in await self._rows(self._statements.first, name=group)]

    async def members(self, group: str) -> list[str]:
        """One SELECT; sorted by when they expire, so oldest first where all live equally long."""
        return [handle for (handle,) in reversed(await self._rows(self._statements.members, name=group))]

    async def sweep(self, *, batch: int = 1000) -> int:
        """Delete what is over, ``batch`` rows a statement; the number of rows in the end.

        Rows that somebody else sweeps at the moment are left to them.
        """
        total = 0
        for statement in self._statements.sweeps:
            while True:
                deleted = len(await self._rows(statement, batch=batch))
                total += deleted
                if deleted < batch:
                    break
        return total

    async def aclose(self) -> None:
        """Waits for calls under way, for ``timeout_s`` at most; the engine stays open."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._timeout_s)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _rows(self, statement: Any, **parameters: Any) -> Sequence[Any]:
        def execute(connection: Connection) -> Sequence[Any]:
            result = connection.execute(statement, parameters)
            return result.all() if result.returns_rows else ()

        return await self._guarded(lambda: self._run(execute))

    async def _run(self, work: Callable[[Connection], Answer]) -> Answer:
        if isinstance(self._engine, AsyncEngine):
            async with self._engine.connect() as connection:
                return await connection.run_sync(work)
        return await asyncio.get_running_loop().run_in_executor(self._threads, _in_thread, self._engine, work)

    async def _guarded(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        if (ticket := self._breaker.admit()) is None:
            raise SessionStoreError(
                f"{self._name} failed repeatedly: it is not asked for another {self._breaker.wait_s:.1f} s"
            )
        succeeded: bool | None = None
        try:
            answer = await self._in_time(call)
            succeeded = True
            return answer
        except TimeoutError:
            succeeded = False
            raise SessionStoreError(
                f"{self._name} did not answer within {self._timeout_s:g} s: look at its load and at the pool"
            ) from None
        except (SQLAlchemyError, OSError) as error:
            succeeded = isinstance(error, DatabaseError) and not isinstance(error, OperationalError)
            raise SessionStoreError(f"{self._name} {self._reason(error)}") from None
        finally:
            self._breaker.settle(ticket, succeeded)

    async def _in_time(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """A cancelled driver may wait for its server, and a thread cannot be cancelled: nobody waits."""
        task = asyncio.ensure_future(call())
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
        if not done:
            task.cancel()
            raise TimeoutError
        return task.result()

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked has been told already

    @property
    def _name(self) -> str:
        url = self._engine.url
        where = f" at {url.host}:{url.port or 5432}" if url.host else ""
        return f"{'PostgreSQL' if url.get_backend_name() == 'postgresql' else 'SQLite'}{where}"

    def _reason(self, error: Exception) -> str:
        """Without the error's own text, which quotes statements and their values."""
        if isinstance(error, DatabaseError) and not isinstance(error, OperationalError):
            kind = type(error.orig or error).__name__
            return (
                f"refuses a statement ({kind}): run SQLStore.create_tables(), grant the use of {self._table}"
            )
        return f"cannot be reached ({type(error).__name__}): start it, or correct the engine's URL"


def _in_thread(engine: Engine, work: Callable[[Connection], Answer]) -> Answer:
    with engine.connect() as connection:
        return work(connection)


def _ms(ttl_s: float) -> int:
    return max(1, round(ttl_s * 1000))
