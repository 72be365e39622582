"""A database of several shards: sessions for one key, and queries over all of them.

    shards = {name: DatabaseRouter(url) for name, url in parse_shard_urls(os.environ["SHARD_URLS"]).items()}
    database = ShardedDatabase(os.environ["SHARD_DIRECTORY"], shards)

    with database.session_for(user_id) as session:      # the shard of this user; committed at the end
        session.add(Order(user_id=user_id, total=42))
    newest = database.query_all(select(Order).order_by(Order.created_at.desc()).limit(20)).scalars().all()

``async with`` gives an AsyncSession on the same terms.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from tenfold.breaker import Breaker
from tenfold.errors import (
    BucketMovedError,
    DependencyError,
    DirectoryError,
    QueryRefusedError,
    SettingsError,
    ShardDownError,
)
from tenfold.sharding.administration import DirectoryStore
from tenfold.sharding.consistency import ShardContexts, ShardTokens
from tenfold.sharding.directory import Directory, Placement
from tenfold.sharding.ids import decode_id
from tenfold.sharding.keys import Key
from tenfold.sharding.lease import DirectoryLease
from tenfold.sharding.load import LoadCounter
from tenfold.sharding.merge import LOAD_APART, MAX_ROWS, ShardQuery, next_page_token, plan_page, plan_query
from tenfold.sharding.shards import HAS_MOVED, Shard, as_shard, translate_error

try:
    from sqlalchemy import event, text
    from sqlalchemy.engine import IteratorResult, Result
    from sqlalchemy.engine.result import SimpleResultMetaData
    from sqlalchemy.exc import InvalidRequestError
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session
except ImportError as error:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[database]'") from error

__all__ = ["Page", "ShardedDatabase"]

_log = logging.getLogger("tenfold.sharding")
Value = TypeVar("Value")

_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 0.0)  # after each attempt: a bucket moves in less than their sum
_CLAIM = text(
    "SELECT tenfold.claim(CAST(:bucket AS smallint), CAST(:epoch AS bigint)), "
    "set_config('tenfold.bucket', :bucket_text, true), set_config('tenfold.key', :key, true)"
)
_NO_URL = "the directory has a shard {}, which this service has no URL for"
_LOOK = text(
    "SELECT count(*) FROM tenfold.buckets WHERE bucket = CAST(:bucket AS smallint) "
    "AND epoch = CAST(:epoch AS bigint) AND owned"
)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a query over all shards.

    Attributes:
        rows: its rows; of a query for one entity, its objects.
        next: what ``after=`` takes for the page behind it; "" behind the last.
    """

    rows: list[Any]
    next: str


class ShardedDatabase:
    """Routes sessions to the shard of their key, and runs queries on all shards.

    What protects data does not rest on this process: a shard refuses a session whose epoch of the bucket
    is not its own, a row of a bucket that it does not have, and one of another key than the session's.

    Args:
        directory: the URL of the directory's database, or a :class:`DirectoryStore`.
        shards: by name, a DatabaseRouter each, or an Engine, AsyncEngine, sessionmaker or async_sessionmaker.
        lease_s: seconds that a directory may be used; then, while it cannot be read, nothing is routed.
        max_rows: of a query over all shards without LIMIT.
        count_load: store which keys take how much of the load beside the directory, for ``tenfold shards
            load``.
    """

    def __init__(
        self,
        directory: str | DirectoryStore,
        shards: Mapping[str, Any],
        *,
        lease_s: float = 5.0,
        max_rows: int = MAX_ROWS,
        count_load: bool = True,
    ) -> None:
        if not shards or lease_s <= 0:
            raise SettingsError("a sharded database needs its shards by name, and a lease of more than 0 s")
        self._store = DirectoryStore(directory) if isinstance(directory, str) else directory
        self._shards: dict[str, Shard] = {name: as_shard(name, one) for name, one in shards.items()}
        routers = {name: one for name, one in self._shards.items() if hasattr(one, "consistency_context")}
        self._tokens = ShardTokens(routers)
        self._token_s: float = max((one.token_s for one in routers.values()), default=0.0)  # type: ignore[attr-defined]
        self._breakers = {name: Breaker() for name in self._shards}
        self._lease = DirectoryLease(self._load_directory, lease_s=lease_s)
        self._max_rows = max_rows
        self._load = LoadCounter() if count_load else None
        self._threads: ThreadPoolExecutor | None = None
        self._pid = 0

    # ------------------------------------------------------------------ one key

    def session_for(self, key: Key, *, read_only: bool = False) -> ShardSession:
        """A session on the shard of ``key``: ``with`` gives a Session, ``async with`` an AsyncSession.

        It is committed at the end of the block unless an exception ends it. Rows that it inserts get the
        key's bucket from the database. A read-only session may be on a replica of the shard; what it reads
        is on the right shard when it begins.

        Raises:
            SettingsError: the key is not of the directory's type.
            DirectoryError: the directory cannot be read, and the lease is over.
            BucketMovedError: the directory was changed within the lease; :meth:`run` repeats by itself.
            ShardDownError: the shard does not answer.
            CrossShardError: a row of another key was written.
        """
        return ShardSession(self, lambda directory: directory.place(key), read_only)

    def session_for_id(self, row_id: Any, *, read_only: bool = False) -> ShardSession:
        """A session on the shard of a row, found by its id, which ``make_uuid`` or ``next_id`` made."""
        bucket = decode_id(row_id).bucket
        return ShardSession(self, lambda directory: directory.place_bucket(bucket), read_only)

    def run(self, key: Key, function: Callable[[Session], Value], *, read_only: bool = False) -> Value:
        """Call ``function`` with a session for ``key``; return its result. Waits for a bucket that moves.

        Only what has not begun is repeated: ``function`` is called once.

        Raises:
            As :meth:`session_for`.
        """
        for number, pause_s in enumerate(_PAUSES_S):
            scope = self.session_for(key, read_only=read_only and not number)
            try:
                session = scope.__enter__()
            except BucketMovedError:
                time.sleep(pause_s)
                self._lease.renew()
                continue
            with ExitStack() as exits:
                exits.push(scope)
                return function(session)
        raise BucketMovedError(HAS_MOVED)

    async def run_async(
        self, key: Key, function: Callable[[AsyncSession], Awaitable[Value]], *, read_only: bool = False
    ) -> Value:
        """As :meth:`run`, for asyncio."""
        for number, pause_s in enumerate(_PAUSES_S):
            scope = self.session_for(key, read_only=read_only and not number)
            try:
                session = await scope.__aenter__()
            except BucketMovedError:
                await asyncio.sleep(pause_s)
                await self._lease.renew_async()
                continue
            async with AsyncExitStack() as exits:
                exits.push_async_exit(scope)
                return await function(session)
        raise BucketMovedError(HAS_MOVED)

    def bucket_for(self, key: Key) -> int:
        """The bucket of a key, for :func:`~tenfold.sharding.make_uuid`."""
        return self._lease.get().place(key).bucket

    # ------------------------------------------------------------------ all shards

    def query_all(self, statement: Any) -> Result[Any]:
        """Run a SELECT on all shards at once and merge the rows, as one database would answer.

        Each object belongs to no session: load what it needs with it (``selectinload``).

        Raises:
            QueryRefusedError: the merged result would be wrong; it says why.
            ShardDownError: a shard does not answer; it is named, and nothing is returned.
            BucketMovedError: buckets were moved again and again while it ran.
        """
        query = plan_query(statement, max_rows=self._max_rows)
        return _result(query, self._gather(query))

    async def query_all_async(self, statement: Any) -> Result[Any]:
        """As :meth:`query_all`, for asyncio."""
        query = plan_query(statement, max_rows=self._max_rows)
        return _result(query, await self._gather_async(query))

    def query_page(self, statement: Any, *, size: int, after: str = "") -> Page:
        """One page of a SELECT with ORDER BY over all shards; ``after`` is the former page's ``next``.

        A page costs the same wherever it is: rows are found by the values of ORDER BY, not counted.

        Raises:
            PageTokenError: ``after`` is no such token. Others as :meth:`query_all`.
        """
        query = plan_page(statement, size=size, after=after)
        return _page(query, self._gather(query), size)

    async def query_page_async(self, statement: Any, *, size: int, after: str = "") -> Page:
        """As :meth:`query_page`, for asyncio."""
        query = plan_page(statement, size=size, after=after)
        return _page(query, await self._gather_async(query), size)

    def _gather(self, query: ShardQuery) -> list[Sequence[Any]]:
        directory = self._lease.get()
        for number, pause_s in enumerate(_PAUSES_S):
            try:
                work = self._work(query, directory, replicas=not number)
                first, *others = work

                def ask(name: str) -> Sequence[Any]:
                    return self._ask(name, *work[name])  # noqa: B023

                futures = [self._pool.submit(contextvars.copy_context().run, ask, name) for name in others]
                try:
                    answers = [ask(first)]
                finally:
                    for future in futures:
                        future.exception()  # all have ended before anything is raised
                return query.merge([*answers, *(future.result() for future in futures)])
            except BucketMovedError:
                time.sleep(pause_s)
                directory = self._lease.renew()
        raise BucketMovedError(HAS_MOVED)

    async def _gather_async(self, query: ShardQuery) -> list[Sequence[Any]]:
        directory = await self._lease.get_async()
        for number, pause_s in enumerate(_PAUSES_S):
            try:
                work = self._work(query, directory, replicas=not number)
                asked = (self._ask_async(name, *each) for name, each in work.items())
                answers = await asyncio.gather(*asked, return_exceptions=True)
                for answer in answers:
                    if isinstance(answer, BaseException):
                        raise answer
                return query.merge(answers)  # type: ignore[arg-type]
            except BucketMovedError:
                await asyncio.sleep(pause_s)
                directory = await self._lease.renew_async()
        raise BucketMovedError(HAS_MOVED)

    def _work(
        self, query: ShardQuery, directory: Directory, *, replicas: bool
    ) -> dict[str, tuple[Any, bool]]:
        """The statement for each shard with buckets, and whether replicas, which may be late, can answer."""
        if missing := set(directory.used_shards) - self._shards.keys():
            raise SettingsError(_NO_URL.format(min(missing)))
        epochs = directory.shard_epochs
        return {name: (query.statement_for(epochs[name]), replicas) for name in directory.used_shards}

    def _ask(self, name: str, statement: Any, replicas: bool) -> Sequence[Any]:
        with self._guard(name), self._scope(name, read_only=replicas) as session:
            rows = _all(session.execute(statement))
            session.expunge_all()
            return rows

    async def _ask_async(self, name: str, statement: Any, replicas: bool) -> Sequence[Any]:
        with self._guard(name):
            async with self._scope(name, read_only=replicas) as session:
                rows = _all(await session.execute(statement))
                session.expunge_all()
                return rows

    @property
    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None or self._pid != os.getpid():  # threads do not survive a fork
            count = min(64, 8 * len(self._shards))
            self._threads, self._pid = ThreadPoolExecutor(count, thread_name_prefix="shards"), os.getpid()
        return self._threads

    # ------------------------------------------------------------------ consistency, state and end

    def consistency_context(self, token: str | None = None) -> AbstractContextManager[ShardContexts]:
        """A context of every shard's router for a block: pass this database to ConsistencyMiddleware."""
        return self._tokens.open(token)

    def token(self) -> str | None:
        """The tokens of this context, each with its shard's name; None when nothing was seen."""
        return self._tokens.text()

    @property
    def token_s(self) -> float:
        """The lifetime of a token, seconds."""
        return self._token_s

    def directory(self) -> Directory:
        """The directory as it is used now."""
        return self._lease.get()

    def close(self) -> None:
        """Close what belongs to this object: the directory's connection and threads; shards stay open."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None
        self._store_load()
        self._store.close()

    def _load_directory(self, known: Directory | None) -> Directory:
        directory = self._store.load(known)
        self._store_load()
        return directory

    def _store_load(self) -> None:
        if self._load is not None and (rows := self._load.take()):
            try:
                self._store.record_load(rows)
            except DirectoryError as error:
                _log.warning("the load of shards is not counted: %s", error)
                self._load = None

    # ------------------------------------------------------------------ sessions

    def _scope(self, name: str, *, read_only: bool) -> Any:
        shard = self._shards[name]
        if read_only and (name not in self._tokens.routers or not self._tokens.require_primary(name)):
            return shard.read()
        return shard.write()

    @contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        """Ask a shard for one thing; not at all while it does not answer."""
        ticket = self._admit(name)
        try:
            yield
        except BaseException as error:
            self._fail(name, ticket, error, connecting=True)
            raise
        self._breakers[name].record(ticket, True)

    def _admit(self, name: str) -> int:
        breaker = self._breakers.get(name)
        if breaker is None:
            raise SettingsError(_NO_URL.format(name))
        if (ticket := breaker.admit()) is None:
            raise ShardDownError(f"shard {name} does not answer; it is asked again in {breaker.wait_s:.1f} s")
        return ticket

    def _fail(self, name: str, ticket: int, error: BaseException, *, connecting: bool) -> None:
        """Record an error for the breaker; raise what it means for shards, if it has to do with them."""
        meaning = translate_error(error, name, connecting=connecting)
        outcome = None if not isinstance(error, Exception) else not isinstance(meaning, ShardDownError)
        self._breakers[name].record(ticket, outcome)
        if meaning is not error:
            raise meaning from error

    def _record(self, place: Placement, ticket: int, started: float) -> None:
        self._breakers[place.shard].record(ticket, True)
        if self._load is not None:
            self._load.record(place.bucket, place.key, time.monotonic() - started)


class ShardSession:
    """A session on the shard of one key, as a block; made by :class:`ShardedDatabase`, used once."""

    __slots__ = ("_database", "_find", "_place", "_read_only", "_scope", "_started", "_ticket")

    def __init__(
        self, database: ShardedDatabase, find: Callable[[Directory], Placement], read_only: bool
    ) -> None:
        self._database, self._find, self._read_only = database, find, read_only

    def __enter__(self) -> Session:
        self._begin(self._database._lease.get())
        try:
            session: Session = self._scope.__enter__()
            try:
                if self._read_only:
                    _require_found(session.execute(_LOOK, _look_values(self._place)).scalar())
                else:
                    _claim_each_transaction(session, self._place)
                    session.connection()  # so that a bucket that has moved is noticed before the block
            except BaseException:
                self._scope.__exit__(*sys.exc_info())
                raise
        except BaseException as error:
            self._fail(error, connecting=True)
            raise
        return session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._scope.__exit__(kind, error, trace)
        except BaseException as failure:
            self._fail(failure)
            raise
        self._end(error)

    async def __aenter__(self) -> AsyncSession:
        self._begin(await self._database._lease.get_async())
        try:
            session: AsyncSession = await self._scope.__aenter__()
            try:
                if self._read_only:
                    _require_found((await session.execute(_LOOK, _look_values(self._place))).scalar())
                else:
                    _claim_each_transaction(session.sync_session, self._place)
                    await session.connection()
            except BaseException:
                await self._scope.__aexit__(*sys.exc_info())
                raise
        except BaseException as error:
            self._fail(error, connecting=True)
            raise
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
        except BaseException as failure:
            self._fail(failure)
            raise
        self._end(error)

    def _begin(self, directory: Directory) -> None:
        self._place = self._find(directory)
        self._ticket = self._database._admit(self._place.shard)
        self._scope = self._database._scope(self._place.shard, read_only=self._read_only)
        self._started = time.monotonic()

    def _fail(self, error: BaseException, *, connecting: bool = False) -> None:
        self._database._fail(self._place.shard, self._ticket, error, connecting=connecting)

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            self._database._record(self._place, self._ticket, self._started)
        else:
            self._fail(error)


def _look_values(place: Placement) -> dict[str, Any]:
    return {"bucket": place.bucket, "epoch": place.epoch}


def _require_found(count: Any) -> None:
    if not count:
        raise BucketMovedError(HAS_MOVED)


def _claim_each_transaction(session: Session, place: Placement) -> None:
    """Let each transaction of a session begin with its claim of the bucket."""
    values = {**_look_values(place), "bucket_text": str(place.bucket), "key": place.key}

    def claim(_: Session, transaction: Any, connection: Any) -> None:
        if not transaction.nested:
            connection.execute(_CLAIM, values)

    event.listen(session, "after_begin", claim)


# ------------------------------------------------------------------ results


def _all(result: Result[Any]) -> Sequence[Any]:
    try:
        return result.all()
    except InvalidRequestError as error:
        if "unique()" in str(error):
            raise QueryRefusedError(LOAD_APART) from None
        raise


def _result(query: ShardQuery, rows: Sequence[Any]) -> Result[Any]:
    width = len(query.names)
    return IteratorResult(SimpleResultMetaData(query.names), iter([tuple(row[:width]) for row in rows]))


def _page(query: ShardQuery, rows: list[Any], size: int) -> Page:
    width = len(query.names)
    more = next_page_token(rows[size - 1], width) if len(rows) > size else ""
    result = _result(query, rows[:size])
    return Page(list(result.scalars() if width == 1 else result), more)
