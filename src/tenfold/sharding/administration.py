"""The directory's tables and what a shard knows of them: created, read, and changed by one writer at a time.

Everything here is psycopg and blocks; a service only calls it through
:class:`~tenfold.sharding.ShardedDatabase`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.errors import DependencyError, DirectoryConflictError, DirectoryError, SettingsError
from tenfold.redaction import redact
from tenfold.sharding.directory import Bucket, Directory
from tenfold.sharding.keys import BUCKETS, Key, KeyType, bucket_of, encode_key, parse_key_types

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "DirectoryStore",
    "assign_tenant",
    "connect",
    "count_rows_of",
    "create_shards",
    "parse_shard_urls",
    "push",
]

_OLDEST = 140_000
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_BETWEEN = re.compile(r"[,\s]+(?=[^,\s=]*=\w+(?:\+\w+)?://)")  # a URL may have commas between its hosts
_TABLES = """
CREATE SCHEMA IF NOT EXISTS tenfold;
CREATE TABLE IF NOT EXISTS tenfold.directory (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row), version bigint NOT NULL, key_types text NOT
  NULL);
CREATE TABLE IF NOT EXISTS tenfold.directory_shards (
  name text PRIMARY KEY, epoch bigint NOT NULL, number integer NOT NULL);
CREATE TABLE IF NOT EXISTS tenfold.directory_buckets (
  bucket smallint PRIMARY KEY, shard text NOT NULL REFERENCES tenfold.directory_shards, epoch bigint NOT NULL,
  tenant text NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS tenfold.directory_load (
  minute timestamptz, bucket smallint, key text, sessions bigint NOT NULL, seconds double precision NOT NULL,
  PRIMARY KEY (minute, bucket, key));
"""


def parse_shard_urls(text: str) -> dict[str, str]:
    """Parse ``one=postgresql://…,two=postgresql://…``, as a service gets it in a variable.

    Raises:
        SettingsError: an entry has no name or no URL; URLs are not shown, as they hold passwords.
    """
    found: dict[str, str] = {}
    for entry in _BETWEEN.split(text.strip()) if text.strip() else ():
        name, equals, url = entry.partition("=")
        if not _NAME.fullmatch(name) or not equals or "://" not in url or name in found:
            shown = name[:30] if equals else "an entry"
            raise SettingsError(
                f"the shards' URLs cannot be read at {shown}: write name=postgresql://… for each, with "
                "commas between them and each name once"
            )
        found[name] = url
    return found


@contextmanager
def connect(url: str, *, what: str) -> Iterator[psycopg.Connection[Any]]:
    """Open a connection for one transaction, committed at the end of the block.

    Raises:
        DependencyError: psycopg is not installed.
        DirectoryError: the server does not answer, or refuses a statement; names ``what``.
    """
    psycopg = _library()
    try:
        with _open(url) as connection:
            yield connection
    except psycopg.Error as error:
        raise DirectoryError(f"{what}: {_sentence(error)}") from error


def _library() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise DependencyError("psycopg is not installed: pip install 'tenfold[database]'") from error
    return psycopg


def _open(url: str, **options: Any) -> psycopg.Connection[Any]:
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    connection: psycopg.Connection[Any] = _library().connect(
        plain,
        connect_timeout=2,
        tcp_user_timeout=5000,
        application_name="tenfold shards",
        prepare_threshold=None,  # an older PgBouncer mixes prepared statements up
        **options,
    )
    return connection


def _sentence(error: Exception) -> str:
    return " ".join(redact(str(error)).split()) or type(error).__name__


class DirectoryStore:
    """The directory in a PostgreSQL database, which may be one of the shards.

    Args:
        url: of the database; in ``postgresql+asyncpg://`` the driver is left out, it is always psycopg 3.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self._pid = 0

    def create(self, directory: Directory) -> None:
        """Create the tables, and store a first directory.

        Raises:
            DirectoryConflictError: there is one.
        """
        with connect(self._url, what=_THE_DIRECTORY) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(1952804454, 0)")
            connection.execute(_TABLES.encode())
            if connection.execute("SELECT 1 FROM tenfold.directory").fetchone():
                raise DirectoryConflictError("there is a directory in this database already")
            connection.execute(
                "INSERT INTO tenfold.directory (version, key_types) VALUES (0, %s)",
                (",".join(directory.key_types),),
            )
            _write(connection, directory)

    def save(self, directory: Directory) -> None:
        """Store the next version of the directory.

        Raises:
            DirectoryConflictError: another writer has changed it since it was read.
        """
        with connect(self._url, what=_THE_DIRECTORY) as connection:
            _write(connection, directory)

    def load(self, known: Directory | None = None) -> Directory:
        """Read the directory, over a connection that is kept; return ``known`` if that is still the version.

        Raises:
            DirectoryError: there is none, or its database does not answer.
        """
        with self._lock:
            try:
                return self._load(self._kept_connection(), known)
            except _library().Error as error:
                self._forget()
                raise DirectoryError(f"{_THE_DIRECTORY} cannot be read: {_sentence(error)}") from error

    def _load(self, connection: psycopg.Connection[Any], known: Directory | None) -> Directory:
        if not connection.execute("SELECT to_regclass('tenfold.directory') IS NOT NULL").fetchall()[0][0]:
            raise DirectoryError(f"{_THE_DIRECTORY} does not exist: create it with tenfold shards init")
        row = connection.execute("SELECT version, key_types FROM tenfold.directory").fetchone()
        if row is None:
            raise DirectoryError(f"{_THE_DIRECTORY} is empty: create it with tenfold shards init")
        if known is not None and row[0] == known.version:
            return known
        # One statement, one snapshot: the version must be that of the rows.
        (version, types, shards, buckets), *_ = connection.execute(
            "SELECT d.version, d.key_types, "
            "(SELECT array_agg(s.name || ' ' || s.epoch ORDER BY s.number) FROM tenfold.directory_shards s), "
            "(SELECT array_agg(b.bucket || ' ' || b.epoch || ' ' || b.shard || ' ' || b.tenant) "
            "FROM tenfold.directory_buckets b) FROM tenfold.directory d"
        ).fetchall()
        epochs = {name: int(epoch) for name, epoch in (entry.split(" ") for entry in shards or ())}
        names = {name: name for name in epochs}  # one text for each shard, not 4,096
        found: dict[int, Bucket] = {}
        for entry in buckets or ():
            number, epoch, shard, tenant = entry.split(" ", 3)
            found[int(number)] = Bucket(names[shard], int(epoch), tenant)
        return Directory(version, parse_key_types(types), epochs, found)

    def record_load(self, rows: Sequence[tuple[int, str, int, float]]) -> None:
        """Add sessions and their seconds, by bucket and key, to those of this minute; forget older hours."""
        with connect(self._url, what=_THE_DIRECTORY) as connection:
            connection.cursor().executemany(
                "INSERT INTO tenfold.directory_load AS l VALUES "
                "(date_trunc('minute', now()), %s, %s, %s, %s) ON CONFLICT (minute, bucket, key) DO UPDATE "
                "SET sessions = l.sessions + excluded.sessions, seconds = l.seconds + excluded.seconds",
                rows,
            )
            connection.execute("DELETE FROM tenfold.directory_load WHERE minute < now() - interval '1 hour'")

    def read_load(self) -> list[tuple[int, str, int, float]]:
        """Sessions and their seconds in the last ten minutes, by bucket and key."""
        with connect(self._url, what=_THE_DIRECTORY) as connection:
            return connection.execute(
                "SELECT bucket, key, sum(sessions)::bigint, sum(seconds) FROM tenfold.directory_load "
                "WHERE minute > now() - interval '10 minutes' GROUP BY bucket, key"
            ).fetchall()

    @contextmanager
    def exclude_changes(self) -> Iterator[None]:
        """Keep other processes out for the length of a block: a migration, or a move.

        Raises:
            DirectoryConflictError: another process is inside.
        """
        with connect(self._url, what=_THE_DIRECTORY) as connection:
            if not connection.execute("SELECT pg_try_advisory_xact_lock(1952804454, 2)").fetchall()[0][0]:
                raise DirectoryConflictError("a migration or a move of these shards is running: wait for it")
            yield

    def close(self) -> None:
        """Close the connection that :meth:`load` keeps."""
        with self._lock:
            self._forget()

    def _kept_connection(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed or self._pid != os.getpid():
            self._forget()
            self._connection, self._pid = _open(self._url, autocommit=True), os.getpid()
        return self._connection

    def _forget(self) -> None:
        if self._connection is not None:
            if self._pid == os.getpid():
                self._connection.close()
            else:  # after a fork the socket is the parent's: keep it from being closed with a farewell
                _of_parents.append(self._connection)
        self._connection = None


_THE_DIRECTORY = "the directory of shards"
_of_parents: list[Any] = []


def _write(connection: psycopg.Connection[Any], directory: Directory) -> None:
    done = connection.execute(
        "UPDATE tenfold.directory SET version = %s WHERE version = %s",
        (directory.version, directory.version - 1),
    )
    if done.rowcount != 1:
        raise DirectoryConflictError(
            f"{_THE_DIRECTORY} was changed by another writer meanwhile: read it again, and repeat the change"
        )
    cursor = connection.cursor()
    cursor.executemany(
        "INSERT INTO tenfold.directory_shards VALUES (%s, %s, %s) "
        "ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch",
        [(name, epoch, number) for number, (name, epoch) in enumerate(directory.shard_epochs.items())],
    )
    numbers = list(directory.buckets)
    values = [directory.buckets[number] for number in numbers]
    connection.execute(
        "INSERT INTO tenfold.directory_buckets AS b "
        "SELECT * FROM unnest(%s::smallint[], %s::text[], %s::bigint[], %s::text[]) "
        "ON CONFLICT (bucket) DO UPDATE SET shard = excluded.shard, epoch = excluded.epoch "
        "WHERE (b.shard, b.epoch) IS DISTINCT FROM (excluded.shard, excluded.epoch)",
        (
            numbers,
            [bucket.shard for bucket in values],
            [bucket.epoch for bucket in values],
            [bucket.tenant for bucket in values],
        ),
    )
    connection.execute("DELETE FROM tenfold.directory_buckets WHERE bucket <> ALL(%s)", (numbers,))


# ------------------------------------------------------------------ shards


def create_shards(
    store: DirectoryStore, urls: Mapping[str, str], key_types: tuple[KeyType, ...]
) -> Directory:
    """Create the directory over these shards, or add those that it lacks, and install what each shard needs.

    Can be repeated: what is there stays, and what was interrupted is completed. New shards have no bucket.

    Raises:
        SettingsError: a name is no name, a key type differs, or a database is another shard already.
        DirectoryError: a database does not answer.
    """
    for name in urls:
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"{name[:40]!r} is no name of a shard: write lower-case letters, digits, _, -"
            )
    for name, url in urls.items():
        _install(name, url)
    try:
        store.create(directory := Directory.create(list(urls), key_types))
    except DirectoryConflictError:
        directory = store.load()
        if directory.key_types != key_types:
            known, asked = ",".join(directory.key_types), ",".join(key_types)
            raise SettingsError(f"the directory's keys are {known}, not {asked}: they are set once") from None
        if new := [name for name in urls if name not in directory.shard_epochs]:
            store.save(directory := directory.add_shards(new))
    for name, url in urls.items():
        push(directory, name, url)
    return directory


def _install(name: str, url: str) -> None:
    script = Path(__file__).with_name("shard.sql").read_text()
    with connect(url, what=f"shard {name}") as connection:
        (version, encoding), *_ = connection.execute(
            "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')"
        ).fetchall()
        if version < _OLDEST or encoding != "UTF8":
            raise SettingsError(
                f"shard {name} is PostgreSQL {version // 10_000} in {encoding}: 14 or newer in UTF8 is needed"
            )
        connection.execute("SELECT pg_advisory_xact_lock(1952804454, 0)")
        connection.execute(script.encode())
        connection.execute(
            "INSERT INTO tenfold.shard (name, epoch) VALUES (%s, 0) ON CONFLICT DO NOTHING", (name,)
        )
        ((stored,), *_) = connection.execute("SELECT name FROM tenfold.shard").fetchall()
        if stored != name:
            raise SettingsError(f"the database of shard {name} is shard {stored} already: correct the URLs")


def push(directory: Directory, name: str, url: str, *, without: int = -1) -> None:
    """Make a shard know its buckets in this version; waits for the transactions that use a changed one.

    Args:
        without: a bucket that the shard is not to open yet.

    Raises:
        DirectoryConflictError: the shard knows a later version.
        DirectoryError: the shard does not answer.
    """
    mine = directory.buckets_of(name)
    mine.pop(without, None)
    with connect(url, what=f"shard {name}") as connection:
        connection.execute("SET LOCAL lock_timeout = '10s'")
        ((epoch,), *_) = connection.execute("SELECT epoch FROM tenfold.shard FOR UPDATE").fetchall()
        if epoch > directory.shard_epochs[name]:
            raise DirectoryConflictError(f"shard {name} knows a later directory: read it again, and repeat")
        connection.execute(
            "INSERT INTO tenfold.buckets AS b SELECT *, true FROM unnest(%s::smallint[], %s::bigint[]) "
            "ON CONFLICT (bucket) DO UPDATE SET epoch = excluded.epoch, owned = true "
            "WHERE (b.epoch, b.owned) IS DISTINCT FROM (excluded.epoch, true)",
            (list(mine), list(mine.values())),
        )
        connection.execute(
            "UPDATE tenfold.buckets SET owned = false WHERE owned AND bucket <> ALL(%s)", (list(mine),)
        )
        connection.execute("UPDATE tenfold.shard SET epoch = %s", (directory.shard_epochs[name],))


def assign_tenant(store: DirectoryStore, urls: Mapping[str, str], key: Key, shard: str) -> Directory:
    """Give a tenant that has no rows yet a bucket of its own, on a shard of its own or any other.

    Its former shard is told first, so that no process with an older directory writes there any more; then
    rows are looked for; then the new shard is opened. What is interrupted is completed by a repetition.

    Raises:
        SettingsError: the tenant has rows, which would have to be moved.
        DirectoryConflictError: another process changes the directory.
    """
    with store.exclude_changes():
        former = store.load()
        place = former.place(key)
        encoded = encode_key(key, former.key_types)
        if place.bucket == bucket_of(encoded):
            directory = former.assign_tenant(key, shard)
            store.save(directory)
        else:
            directory, shard = former, place.shard  # assigned before: complete it
        home = directory.buckets[bucket_of(encoded)].shard
        push(directory, home, urls[home], without=bucket_of(encoded) + BUCKETS)
        if rows := count_rows_of(urls[home], home, bucket_of(encoded), encoded):
            back = Directory(
                directory.version + 1,
                directory.key_types,
                {name: epoch + (name in (home, shard)) for name, epoch in directory.shard_epochs.items()},
                {number: bucket for number, bucket in directory.buckets.items() if bucket.tenant != encoded},
            )
            store.save(back)
            for name in {home, shard}:
                push(back, name, urls[name])
            raise SettingsError(
                f"the tenant has {rows} rows on shard {home}: only one without rows can be given a bucket of "
                "its own"
            )
        push(directory, shard, urls[shard])
        return directory


def count_rows_of(url: str, name: str, bucket: int, key: str) -> int:
    """The rows of one encoded key in all sharded tables of a shard."""
    from psycopg import sql

    with connect(url, what=f"shard {name}") as connection:
        found = 0
        for table, columns in connection.execute("SELECT name, key FROM tenfold.tables").fetchall():
            parts = sql.SQL(" || ").join(
                sql.SQL("tenfold.key({})").format(sql.Identifier(column)) for column in columns
            )
            query = sql.SQL("SELECT count(*) FROM {} WHERE bucket = %s AND {} = %s").format(
                sql.Identifier(*table.split(".")), parts
            )
            found += connection.execute(query, (bucket, key)).fetchall()[0][0]
        return found
