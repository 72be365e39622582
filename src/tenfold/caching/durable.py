"""A durable log of invalidations: what a process that died, or a Redis that was away, cannot lose.

The writing transaction inserts its tags into a table. One process, the relay, applies what its writer did
not, and renews a watermark in Redis that lasts a second: while it is there, everything that was committed
more than a moment before has been applied. Without it nothing is served from the cache. So a value is stale
for two seconds at most.

    InvalidationLog.create_table(engine)    # or the text of TABLE in a migration
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Hashable
from typing import Any

from tenfold.caching.core import Core
from tenfold.caching.entry import Tag
from tenfold.caching.listener import MAX_STALE_S, WATERMARK
from tenfold.caching.stores import RedisStore, Steps, new_tag, pack_watermark
from tenfold.commits import find_action
from tenfold.errors import DependencyError, SettingsError
from tenfold.positions import Token
from tenfold.process_thread import ProcessThread

try:
    from sqlalchemy import event, text
    from sqlalchemy.engine import Connection, Engine, create_engine, make_url
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import NullPool
except ImportError:
    raise DependencyError("SQLAlchemy is not installed: pip install 'tenfold[caching]'") from None

__all__ = ["TABLE", "InvalidationLog"]

TABLE = """\
CREATE TABLE IF NOT EXISTS tenfold_cache_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cache text NOT NULL,
    tags jsonb NOT NULL,
    applied_at timestamptz
);
CREATE INDEX IF NOT EXISTS tenfold_cache_log_applied_at ON tenfold_cache_log (cache, applied_at);
"""
_ROUND_S, _TAKEOVER_S = 0.25, 0.5
# One relay for a cache in a database; a cache is known by its prefix.
_LOCK = text("SELECT pg_try_advisory_lock(hashtextextended('tenfold_cache_log ' || :cache, 0))")
_INSERT = text("INSERT INTO tenfold_cache_log (cache, tags) VALUES (:cache, CAST(:tags AS jsonb))")
_TAKE = text(
    "UPDATE tenfold_cache_log SET applied_at = clock_timestamp() "
    "WHERE cache = :cache AND applied_at IS NULL RETURNING tags"
)
_REPEAT = text(
    "UPDATE tenfold_cache_log SET applied_at = clock_timestamp() WHERE cache = :cache "
    "AND (applied_at IS NULL OR applied_at > clock_timestamp() - interval '60 s') RETURNING tags"
)
_FORGET = text(
    "DELETE FROM tenfold_cache_log WHERE cache = :cache AND applied_at < clock_timestamp() - interval '120 s'"
)
_SNAPSHOT = (
    "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, "
    "pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
)
_log = logging.getLogger("tenfold.caching")


class InvalidationLog(ProcessThread):
    """The log of one cache, and its relay: a thread in each process, of which one is active.

    Args:
        database: URL or Engine of the PostgreSQL primary that the writing sessions are on; the relay's own
            connection is made from it, with psycopg.

    Raises:
        SettingsError: it is no PostgreSQL.
    """

    def __init__(self, database: str | Engine) -> None:
        url = database.url if isinstance(database, Engine) else make_url(database)
        if url.get_backend_name() not in ("postgresql", "postgres"):
            raise SettingsError(
                "the log of invalidations needs PostgreSQL: pass durable= the URL of the primary"
            )
        super().__init__(name="tenfold-cache-relay")
        self._url = url.set(drivername="postgresql+psycopg")

    @staticmethod
    def create_table(engine: Engine) -> None:
        """Create the table, unless it is there."""
        with engine.begin() as connection:
            for statement in TABLE.split(";\n"):
                if statement.strip():
                    connection.exec_driver_sql(statement)

    def attach(self, core: Core, *, key: Hashable, run: Callable[[Steps[Any]], Any]) -> None:
        """Serve a cache.

        Args:
            key: under which its invalidations wait for a commit.
            run: carries out steps in the calling thread.

        Raises:
            SettingsError: its Redis is a cluster.
        """
        assert isinstance(core.store, RedisStore)
        if core.store.is_cluster:
            raise SettingsError(
                "a durable log needs a Redis that fails over as one: in a cluster, one part may lose changes "
                "that the watermark of another vouches for"
            )
        self._core, self._store, self._key, self._run_steps = core, core.store, key, run

    # ------------------------------------------------------------------ in the writing transaction

    def prepare(self, session: Session) -> None:
        """Insert the tags that wait for this session's commit when it commits."""
        if self not in session.info:
            session.info[self] = True
            event.listen(session, "before_commit", self._insert)

    def _insert(self, session: Session) -> None:
        waiting: Any = find_action(session, self._key)
        if waiting is None or session.in_nested_transaction():
            return
        session.flush()  # which may add tags
        tags = {name: generation.hex() for name, generation in waiting.generations.items()}
        session.connection().execute(_INSERT, {"cache": self._store.prefix, "tags": json.dumps(tags)})

    # ------------------------------------------------------------------ the relay

    def _run(self, stopping: threading.Event) -> None:
        engine = create_engine(self._url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        is_failing = False
        while not stopping.is_set():
            try:
                with engine.connect() as connection:
                    is_active = connection.execute(_LOCK, {"cache": self._store.prefix}).scalar_one()
                    relay = Relay(self._core, self._store, self._run_steps, connection)
                    while is_active and not stopping.wait(_ROUND_S):
                        relay.apply()
                        is_failing = False
            except Exception as error:  # the database's, the driver's and Redis'; the next round tries again
                if not is_failing:
                    _log.warning("the relay of cache invalidations pauses: %s", _first_line(error))
                is_failing = True
            stopping.wait(_TAKEOVER_S)
        engine.dispose()


def _first_line(error: Exception) -> str:
    """What went wrong, without SQLAlchemy's statement and the driver's further lines."""
    if "tenfold_cache_log" in str(error) and "does not exist" in str(error):
        return "the table tenfold_cache_log is missing: create it with InvalidationLog.create_table(engine)"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class Relay:
    """Applies what is left in the log, and renews the watermark. Uses one connection in AUTOCOMMIT."""

    def __init__(
        self,
        core: Core,
        store: RedisStore,
        run: Callable[[Steps[Any]], Any],
        connection: Connection,
    ) -> None:
        self._core, self._store, self._run, self._connection = core, store, run, connection
        self._cache = {"cache": store.prefix}
        self._last: bytes | None = None
        self._watermark: Token | None = None
        self._pending: tuple[Token, int] | None = None  # a position, and the end of the snapshot after it
        self._rounds = 0

    def apply(self) -> None:
        """One round.

        Raises:
            StoreDownError: Redis does not answer; what was taken from the log stays in it.
        """
        server = self._core.server
        (present,) = server.execute([("GET", self._store.watermark_key)], is_urgent=True)
        # Not what was set last: Redis was restarted, has failed over, or was away for longer than it lasts.
        repeats = self._last is None or present != self._last
        position = self._core.fence.primary_token() if self._core.fence else None
        connection = self._connection
        connection.exec_driver_sql("BEGIN")
        try:
            rows = connection.execute(_REPEAT if repeats else _TAKE, self._cache).scalars().all()
            oldest, following = connection.exec_driver_sql(_SNAPSHOT).one()
            self._renew(rows, repeats=repeats)
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        self._advance(position, oldest, following)
        self._publish()
        self._rounds += 1
        if self._rounds % 100 == 0:
            connection.execute(_FORGET, self._cache)

    def _renew(self, rows: Any, *, repeats: bool) -> None:
        """Renew the tags of these rows, but for those whose writer has done it and no other one since."""
        wanted = {name: bytes.fromhex(generation) for row in rows for name, generation in row.items()}
        if not wanted:
            return
        names = list(wanted)
        keys = [self._store.key("t", name) for name in names]
        (values,) = self._core.server.execute([("MGET", *keys)], is_urgent=True)
        found = {name: Tag.unpack(value) for name, value in zip(names, values, strict=True)}
        token = self._core.fence.primary_token() if self._core.fence else None
        tags = {
            name: new_tag(token)
            for name, tag in found.items()
            if repeats or tag is None or tag.generation != wanted[name]
        }
        if tags:
            self._run(self._store.renew_tags(tags))

    def _advance(self, position: Token | None, oldest: int, following: int) -> None:
        """Move the watermark to a position once all transactions that were running after it have ended.

        One that is in its COMMIT may have its record before the position, and be visible on a replica.
        """
        if self._pending is not None and oldest >= self._pending[1]:
            self._watermark, self._pending = self._pending[0], None
        if self._pending is None and position is not None:
            self._pending = position, following

    def _publish(self) -> None:
        packed = pack_watermark(self._watermark)
        self._core.server.execute(
            [
                ("SET", self._store.watermark_key, packed, "PX", int(MAX_STALE_S * 1000)),
                ("PUBLISH", self._store.channel, WATERMARK + packed),
            ],
            is_urgent=True,
        )
        self._last = packed
