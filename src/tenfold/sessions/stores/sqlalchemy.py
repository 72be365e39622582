"""A session store in PostgreSQL or SQLite through SQLAlchemy, for services without Redis.

Every method is one statement in autocommit; a conflict or a new member of a group takes one more. Lifetimes
are measured by the database's clock, so that instances whose clocks differ agree. Expired rows stay in the
tables until :meth:`SQLStore.sweep` is called: from a scheduled task, say every ten minutes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tenfold.breaker import Breaker
from tenfold.errors import DependencyError, SessionStoreError, SettingsError
from tenfold.sessions.stores.store import StoredPayload, is_tls_error

try:
    from sqlalchemy import (
        BigInteger,
        Column,
        Connection,
        Engine,
        Index,
        LargeBinary,
        MetaData,
        String,
        Table,
        bindparam,
        case,
        delete,
        func,
        literal_column,
        select,
        tuple_,
        update,
    )
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.schema import CreateIndex, CreateTable
except ImportError:
    raise DependencyError("sessions in a database need SQLAlchemy: pip install 'tenfold[database]'") from None

__all__ = ["SQLStore"]

Result = TypeVar("Result")


class SQLStore:
    """A :class:`tenfold.sessions.stores.store.Store` in two tables. For one event loop.

    Each call runs in a task, or with an :class:`~sqlalchemy.Engine` in a thread, of its own: at the timeout
    the caller gets an error at once, while the database driver may take longer to let go.

    Args:
        engine: of PostgreSQL or SQLite; its pool is shared with its other users, and the engine stays open.
        table: the name of the table of sessions; that of groups has ``_groups`` behind it.
        timeout_s: for a whole call, including the wait for a connection of the pool.
        threads: how many concurrent calls, if the engine is not an asynchronous one.
        breaker: by default it opens after 3 failures in a row, for one to one and a half seconds.

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
        self._statements = _StoreStatements(self.metadata, table, engine.dialect.name)
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._threads = (
            ThreadPoolExecutor(threads, "tenfold-sessions") if isinstance(engine, Engine) else None
        )
        self._timeout_s = timeout_s
        self._breaker = breaker or Breaker(failures=3)
        self._running: set[asyncio.Future[Any]] = set()
        self._table = table

    def ddl(self) -> str:
        """Return the DDL of :meth:`create_tables`, for migrations that are written by hand."""
        dialect = self._engine.dialect
        tables = self.metadata.sorted_tables
        texts = [str(CreateTable(table).compile(dialect=dialect)).strip() for table in tables]
        indexes = [
            index for table in tables for index in sorted(table.indexes, key=lambda index: str(index.name))
        ]
        texts += [str(CreateIndex(index).compile(dialect=dialect)).strip() for index in indexes]
        return ";\n\n".join(texts) + ";\n"

    async def create_tables(self) -> None:
        """Create missing tables; not bounded by ``timeout_s``."""
        await self._run(self.metadata.create_all)

    async def read(self, handle: str) -> StoredPayload | None:
        """One SELECT by primary key."""
        return (await self.read_many([handle]))[0]

    async def read_many(self, handles: Sequence[str]) -> list[StoredPayload | None]:
        """One SELECT."""
        if not handles:
            return []
        rows = await self._execute(self._statements.read, handles=list(handles))
        found = {handle: StoredPayload(version, bytes(payload)) for handle, version, payload in rows}
        return [found.get(handle) for handle in handles]

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        """One INSERT; an expired row is overwritten."""
        rows = await self._execute(self._statements.create, handle=handle, payload=payload, ttl_ms=_ms(ttl_s))
        return bool(rows)

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        """One UPDATE … WHERE version; a SELECT if it changed nothing."""
        written = await self._execute(
            self._statements.replace, name=handle, payload=payload, expected=version, ttl_ms=_ms(ttl_s)
        )
        return True if written else await self.read(handle)

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        """One INSERT … ON CONFLICT DO UPDATE: a tombstone is a row of version 0."""
        await self._execute(self._statements.revoke, handle=handle, payload=b"", ttl_ms=_ms(ttl_s))

    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        """One DELETE of expired rows, one INSERT … ON CONFLICT DO UPDATE; a SELECT if that was refused.

        Concurrent calls may exceed the limit of a group by their number.
        """
        await self._execute(self._statements.trim, name=group, handles=list(replacing))
        values = {"name": group, "group": group, "handle": handle, "ttl_ms": _ms(ttl_s)}
        if await self._execute(self._statements.add_member, **values):
            return []
        return [member for (member,) in await self._execute(self._statements.first_to_expire, name=group)]

    async def members(self, group: str) -> list[str]:
        """One SELECT; sorted by expiry, so oldest first where all live equally long."""
        return [handle for (handle,) in reversed(await self._execute(self._statements.members, name=group))]

    async def sweep(self, *, batch: int = 1000) -> int:
        """Delete expired rows, ``batch`` rows a statement; return how many.

        Rows that a concurrent sweep has locked are left to it.
        """
        total = 0
        for statement in self._statements.sweeps:
            while True:
                deleted = len(await self._execute(statement, batch=batch))
                total += deleted
                if deleted < batch:
                    break
        return total

    async def aclose(self) -> None:
        """Wait for running calls, for ``timeout_s`` at most; the engine stays open."""
        if self._running:
            await asyncio.wait(self._running, timeout=self._timeout_s)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _execute(self, statement: Any, **parameters: Any) -> Sequence[Any]:
        def execute(connection: Connection) -> Sequence[Any]:
            result = connection.execute(statement, parameters)
            return result.all() if result.returns_rows else ()

        return await self._call(lambda: self._run(execute))

    async def _run(self, work: Callable[[Connection], Result]) -> Result:
        if isinstance(self._engine, AsyncEngine):
            async with self._engine.connect() as connection:
                return await connection.run_sync(work)
        return await asyncio.get_running_loop().run_in_executor(self._threads, _in_thread, self._engine, work)

    async def _call(self, function: Callable[[], Awaitable[Result]]) -> Result:
        """Call within the timeout and under the breaker; translate errors."""
        if (ticket := self._breaker.admit()) is None:
            raise SessionStoreError(
                f"{self._name} failed repeatedly: it is not asked for another {self._breaker.wait_s:.1f} s"
            )
        succeeded: bool | None = None
        try:
            result = await self._in_time(function)
            succeeded = True
            return result
        except TimeoutError:
            succeeded = False
            raise SessionStoreError(
                f"{self._name} did not answer within {self._timeout_s:g} s: look at its load and at the pool"
            ) from None
        except (SQLAlchemyError, OSError) as error:
            succeeded = isinstance(error, DatabaseError) and not isinstance(error, OperationalError)
            raise SessionStoreError(f"{self._name} {self._reason(error)}") from None
        finally:
            self._breaker.record(ticket, succeeded)

    async def _in_time(self, function: Callable[[], Awaitable[Result]]) -> Result:
        """Return at the timeout even if the driver does not: a cancelled one may wait for its server."""
        task = asyncio.ensure_future(function())
        self._running.add(task)
        task.add_done_callback(self._forget)
        done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
        if not done:
            task.cancel()
            raise TimeoutError
        return task.result()

    def _forget(self, task: asyncio.Future[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the caller has its error already

    @property
    def _name(self) -> str:
        url = self._engine.url
        # An @ comes from a password that is not percent-encoded, and then any part may be a part of it.
        is_plain = url.host and "@" not in f"{url.host}{url.database}"
        where = f" at {url.host}:{url.port or 5432}" if is_plain else ""
        return f"{'PostgreSQL' if url.get_backend_name() == 'postgresql' else 'SQLite'}{where}"

    def _reason(self, error: Exception) -> str:
        """Without the error's own text, which quotes statements and their values."""
        if isinstance(error, DatabaseError) and not isinstance(error, OperationalError):
            kind = type(error.orig or error).__name__
            return (
                f"refuses a statement ({kind}): run SQLStore.create_tables(), grant the use of {self._table}"
            )
        if _is_login_error(error):
            return "refuses our user, password or database: compare them with the engine's URL"
        if is_tls_error(error):
            return "and this client do not agree on TLS: compare certificate, host name and sslmode"
        return f"cannot be reached ({type(error).__name__}): start it, or correct the engine's URL"


_LOGIN = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|(role|database) .* does not exist"
)


def _is_login_error(error: Exception) -> bool:
    """Return whether the server refused the login: SQLSTATE 28… and 3D000, or libpq's text without one."""
    state = str(getattr(getattr(error, "orig", None) or error, "sqlstate", None) or "")
    return state.startswith(("28", "3D")) or _LOGIN.search(str(error)) is not None


def _in_thread(engine: Engine, work: Callable[[Connection], Result]) -> Result:
    with engine.connect() as connection:
        return work(connection)


def _ms(ttl_s: float) -> int:
    return max(1, round(ttl_s * 1000))


# ------------------------------------------------------------------ statements

MAX_MEMBERS = 1000

# Milliseconds since 1970, by the database's clock. PostgreSQL's now() is that of the transaction's begin.
_NOW = {
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
}
_INSERT = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class _StoreStatements:
    """Each is compiled once and takes its values as parameters.

    Args:
        metadata: where the tables are added.
        table: the name of the first.
        dialect: ``postgresql`` or ``sqlite``.
    """

    def __init__(self, metadata: MetaData, table: str, dialect: str) -> None:
        self._now: Any = literal_column(_NOW[dialect], BigInteger)
        self._insert: Any = _INSERT[dialect]
        self.sessions = Table(
            table,
            metadata,
            Column("handle", String(64), primary_key=True),
            Column("version", BigInteger, nullable=False),  # 0 is a tombstone
            Column("payload", LargeBinary, nullable=False),
            Column("expires_ms", BigInteger, nullable=False),
            Index(f"{table}_expires", "expires_ms"),
        )
        self.groups = Table(
            f"{table}_groups",
            metadata,
            Column("group", String(64), primary_key=True),
            Column("handle", String(64), primary_key=True),
            Column("expires_ms", BigInteger, nullable=False),
            Index(f"{table}_groups_expires", "expires_ms"),
        )
        self._build_sessions()
        self._build_groups()
        self.sweeps = (self._sweep(self.sessions), self._sweep(self.groups))

    def _build_sessions(self) -> None:
        row = self.sessions.c
        until = self._now + bindparam("ttl_ms", type_=BigInteger)
        live = row.expires_ms > self._now
        self.read = select(row.handle, row.version, row.payload).where(
            row.handle.in_(bindparam("handles", expanding=True)), live, row.version > 0
        )
        new = self._insert(self.sessions).values(
            handle=bindparam("handle"), payload=bindparam("payload"), expires_ms=until
        )
        columns = ("version", "payload", "expires_ms")
        create, revoke = new.values(version=1), new.values(version=0)
        self.create = create.on_conflict_do_update(
            index_elements=[row.handle],
            set_={name: create.excluded[name] for name in columns},
            where=row.expires_ms <= self._now,
        ).returning(row.version)
        self.revoke = revoke.on_conflict_do_update(
            index_elements=[row.handle], set_={name: revoke.excluded[name] for name in columns}
        )
        self.replace = (
            update(self.sessions)
            .where(
                row.handle == bindparam("name"), row.version == bindparam("expected"), live, row.version > 0
            )
            .values(version=row.version + 1, payload=bindparam("payload"), expires_ms=until)
            .returning(row.version)
        )

    def _build_groups(self) -> None:
        row = self.groups.c
        in_group = select(row.handle).where(row.group == bindparam("name"))
        is_member = in_group.where(row.handle == bindparam("handle")).exists()
        size = select(func.count()).where(row.group == bindparam("name")).scalar_subquery()
        new = self._insert(self.groups).from_select(
            ["group", "handle", "expires_ms"],
            select(
                bindparam("group", type_=String),
                bindparam("handle", type_=String),
                self._now + bindparam("ttl_ms", type_=BigInteger),
            ).where(is_member | (size < MAX_MEMBERS)),
        )
        later = case(
            (row.expires_ms > new.excluded.expires_ms, row.expires_ms), else_=new.excluded.expires_ms
        )
        self.add_member = new.on_conflict_do_update(
            index_elements=[row.group, row.handle], set_={"expires_ms": later}
        ).returning(row.handle)
        latest = in_group.order_by(row.expires_ms.desc(), row.handle.desc())
        self.members = latest.where(row.expires_ms > self._now).limit(MAX_MEMBERS)
        self.first_to_expire = in_group.order_by(row.expires_ms, row.handle).limit(1)
        expired = in_group.where(row.expires_ms <= self._now).with_for_update(skip_locked=True)
        self.trim = delete(self.groups).where(
            row.group == bindparam("name"),
            row.handle.in_(bindparam("handles", expanding=True)) | row.handle.in_(expired),
        )

    def _sweep(self, table: Table) -> Any:
        """Delete a bounded number of rows, each locked first, so that sweeps do not wait for each other."""
        row, key = table.c, list(table.primary_key.columns)
        expired = (
            select(*key)
            .where(row.expires_ms <= self._now)
            .order_by(row.expires_ms)
            .limit(bindparam("batch"))
            .with_for_update(skip_locked=True)
        )
        return delete(table).where(tuple_(*key).in_(expired), row.expires_ms <= self._now).returning(key[0])
