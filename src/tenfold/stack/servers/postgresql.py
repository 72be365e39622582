"""PostgreSQL: a primary and streaming replicas, with the durability that PostgreSQL has by default.

``initdb`` and ``pg_basebackup`` do not wait for the disk (``--no-sync``): the cluster dies with the stack.
The servers do (``fsync``, ``synchronous_commit``, ``full_page_writes``): what is measured is a real service.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tenfold.errors import DependencyError
from tenfold.settings import Settings
from tenfold.stack import processes
from tenfold.stack.ports import HOST
from tenfold.stack.processes import KILL_WAIT_S, ProcessGroup
from tenfold.stack.programs import POSTGRESQL, Program, find_postgresql, required
from tenfold.stack.server import PLAIN_ENVIRONMENT, LocalServer
from tenfold.stack.workdir import Place

if TYPE_CHECKING:
    import psycopg

_ADMIN = "tenfold"
_RESERVED = {_ADMIN, "postgres", "template0", "template1", "public", "none", "user", "all", "replication"}


def servers(settings: Settings, place: Place) -> list[LocalServer]:
    """The primary and its replicas, if the settings want a database."""
    if not settings.stack.database:
        return []
    program = required(find_postgresql, POSTGRESQL, settings)
    primary = Primary(
        place,
        program,
        name=database_name(settings.service.app),
        max_connections=settings.stack.max_connections,
        replicas=settings.stack.replicas,
        timeout_s=settings.stack.start_timeout_s,
    )
    return [primary, *(Replica(primary, number) for number in range(1, settings.stack.replicas + 1))]


def database_name(app: str) -> str:
    """The database of ``app``: its package's name where PostgreSQL can take it, else "app"."""
    name = app.partition(":")[0].partition(".")[0].lower()
    usable = re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name) and not name.startswith("pg_")
    return name if usable and name not in _RESERVED else "app"


def _connect(url: str) -> psycopg.Connection[Any]:
    try:
        import psycopg
    except ImportError as error:
        raise DependencyError("psycopg is not installed: pip install 'tenfold[stack]'") from error
    return psycopg.connect(url, autocommit=True, connect_timeout=2)


class _PostgreSQL(LocalServer):
    """What primary and replica share: one data folder, one ``postgres``."""

    # Immediate shutdown: the data is thrown away, and shared memory is given back all the same.
    stop_signal = signal.SIGQUIT

    program: Program
    database: str
    user: str
    password: str
    admin_password: str

    @property
    def url(self) -> str:
        """The database, as its owner."""
        return self._url(self.user, self.password, self.database)

    @property
    def admin_url(self) -> str:
        """The same database, as the superuser."""
        return self._url(_ADMIN, self.admin_password, self.database)

    def _url(self, user: str, password: str, database: str) -> str:
        return f"postgresql://{user}:{password}@{self.address}/{database}"

    @property
    def about(self) -> str:
        """Program and version."""
        return f"PostgreSQL {self.program.version}"

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.place.folder / self.slug / "data"

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's own programs to its end."""
        self.place.run(
            f"{program} of {self.name}",
            [str(self.program.path.with_name(program)), *arguments],
            cwd=self.data.parent,
            environment={**PLAIN_ENVIRONMENT, "PGPASSWORD": self.admin_password},
            account=self.place.account,
            timeout_s=self.timeout_s,
        )

    def launch(self) -> ProcessGroup:
        """Start ``postgres``; after a kill it recovers by itself."""
        if self._pid_file.exists():
            self._clear_up()
        name = self.slug.replace("-", "_")
        return self.place.launch(
            self.name,
            [
                str(self.program.path),
                "-D",
                str(self.data),
                "-p",
                str(self.port),
                "-c",
                f"cluster_name={name}",
            ],
            cwd=self.data.parent,
            environment=PLAIN_ENVIRONMENT,
            account=self.place.account,
            number=self.stop_signal,
        )

    @property
    def _pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    def _clear_up(self) -> None:
        """End what a killed leader left: backends, in sessions of their own, and a file that says "ready".

        As long as a backend lives, ``postgres`` refuses to serve the folder: then the file stays.
        """

        def orphans() -> list[psutil.Process]:
            return processes.marked(self.data, {os.path.realpath(self.program.path)})

        processes.signal_all(orphans(), self.stop_signal)
        if processes.gone(orphans, within_s=KILL_WAIT_S, hurry=lambda: False):
            self._pid_file.unlink()

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of ``query``, as the superuser.

        Raises:
            psycopg.Error: the server cannot be reached, or refuses the query.
        """
        with _connect(self.admin_url) as connection:
            return connection.execute(query.encode()).fetchall()

    def _says(self, query: str) -> bool:
        """Whether the only value of ``query`` is true; False when the server does not answer."""
        import psycopg

        try:
            return self._open() and bool(self.ask(query)[0][0])
        except psycopg.Error:
            return False

    def _open(self) -> bool:
        """Whether its pid file says that it takes connections; asking it earlier fills its log with FATAL."""
        try:
            return self._pid_file.read_text().split()[-1] in ("ready", "standby")
        except (OSError, IndexError):
            return False


class Primary(_PostgreSQL):
    """The server that takes writes: scram passwords, loopback, no Unix socket.

    The app's role owns the database, is no superuser and may read all statistics (``pg_monitor``).
    """

    kind = "primary"

    def __init__(
        self,
        place: Place,
        program: Program,
        *,
        name: str,
        max_connections: int,
        replicas: int,
        timeout_s: float,
    ) -> None:
        super().__init__(place, name="primary", timeout_s=timeout_s)
        self.program = program
        self.database = self.user = name
        self.password, self.admin_password = secrets.token_hex(16), secrets.token_hex(16)
        self.max_connections = max_connections
        self._owned = False
        self.replicas = replicas

    def offers(self) -> Mapping[str, str]:
        """``database_url`` and its parts."""
        return {
            "database_url": self.url,
            "database_host": HOST,
            "database_port": str(self.port),
            "database_user": self.user,
            "database_password": self.password,
            "database_name": self.database,
        }

    def secrets(self) -> Sequence[str]:
        """The owner's password and the superuser's."""
        return (self.password, self.admin_password)

    def install(self) -> None:
        """Make the cluster, write what differs from PostgreSQL's defaults."""
        folder = self.place.subfolder(self.slug, account=self.place.account)
        password = self.place.write(
            folder / "password", self.admin_password + "\n", account=self.place.account
        )
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self.program.major >= 17 else []
        self._run(
            "initdb",
            f"--pgdata={self.data}",
            f"--username={_ADMIN}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            *locale,
            "--no-sync",
            "--no-instructions",
        )
        password.unlink()
        # In the file and not on the command line: there, ALTER SYSTEM could not change them.
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write("".join(f"{name} = {value}\n" for name, value in self._settings().items()))

    def _settings(self) -> dict[str, str]:
        return {
            "listen_addresses": f"'{HOST}'",
            "unix_socket_directories": "''",
            "max_connections": str(self.max_connections),
            # A replica takes one sender, two while it is cloned.
            "max_wal_senders": str(4 + 2 * self.replicas),
            "max_replication_slots": str(4 + self.replicas),
            # A checkpoint of one clone may remove the segment that the other has just reserved with its slot.
            "wal_keep_size": "'128MB'",
            # A dead replica's slot keeps WAL: not until the disk is full.
            "max_slot_wal_keep_size": "'1GB'",
            "log_line_prefix": "'%m [%p] '",
            "timezone": "'UTC'",
            "log_timezone": "'UTC'",
        }

    def ready(self) -> bool:
        """Whether it answers; the first time, the app's role is made and gets its database."""
        return self._open() and (self._owned or self._hand_over())

    def _hand_over(self) -> bool:
        """The database is the one that initdb makes, renamed: a second one is 300 files more a server.

        The name is an identifier by its pattern, the password is hexadecimal: neither needs quoting.
        """
        import psycopg

        role = f"create role {self.user} login password '{self.password}' in role pg_monitor"
        try:
            with _connect(self._url(_ADMIN, self.admin_password, "template1")) as connection:
                connection.execute(role.encode())
                connection.execute(f"alter database postgres rename to {self.database}".encode())
                connection.execute(f"alter database {self.database} owner to {self.user}".encode())
        except psycopg.OperationalError:
            return False
        self._owned = True
        return True

    def behind(self) -> dict[str, int]:
        """How many bytes of log each connected replica has yet to replay, by its ``replica_<n>``."""
        rows = self.ask(
            "select application_name, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint "
            "from pg_stat_replication where application_name like 'replica%' and state = 'streaming'"
        )
        return {name: max(0, int(lag)) for name, lag in rows if lag is not None}


class Replica(_PostgreSQL):
    """A streaming copy of the primary, read-only, with a replication slot of its own."""

    kind = "replica"
    needs = frozenset({"primary"})

    def __init__(self, primary: Primary, number: int) -> None:
        super().__init__(primary.place, name=f"replica {number}", timeout_s=primary.timeout_s)
        self.primary = primary
        self.program, self.database, self.user = primary.program, primary.database, primary.user
        self.password, self.admin_password = primary.password, primary.admin_password
        self._goal = ""

    def offers(self) -> Mapping[str, str]:
        """``replica_urls``: this one; all of them, joined by commas, for the app."""
        return {"replica_urls": self.url}

    def install(self) -> None:
        """Clone the primary, as its standby."""
        self.place.subfolder(self.slug, account=self.place.account)
        self._run(
            "pg_basebackup",
            f"--pgdata={self.data}",
            f"--host={HOST}",
            f"--port={self.primary.port}",
            f"--username={_ADMIN}",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--create-slot",
            f"--slot={self.slug.replace('-', '_')}",
            "--write-recovery-conf",
            "--no-sync",
            "--no-manifest",
        )

    def ready(self) -> bool:
        """Whether it answers and streams."""
        return self._says("select count(*) = 1 from pg_stat_wal_receiver where status = 'streaming'")

    def settled(self) -> bool:
        """Whether it has replayed what the primary had written when this was asked first."""
        self._goal = self._goal or str(self.primary.ask("select pg_current_wal_lsn()")[0][0])
        return self._says(f"select pg_last_wal_replay_lsn() >= '{self._goal}'")
