"""PostgreSQL: a primary and streaming replicas, with PostgreSQL's default durability.

``initdb`` and ``pg_basebackup`` do not wait for the disk (``--no-sync``), as the cluster is removed with the
stack. The servers do (``fsync``, ``synchronous_commit``, ``full_page_writes``), so that writes cost what they
cost in production.
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
from tenfold.stack.programs import POSTGRESQL, Program, find_postgresql, require
from tenfold.stack.server import MINIMAL_ENVIRONMENT, LocalServer
from tenfold.stack.workdir import WorkDir

if TYPE_CHECKING:
    import psycopg

ADMIN = "tenfold"
_RESERVED = {ADMIN, "postgres", "template0", "template1", "public", "none", "user", "all", "replication"}


def create_servers(settings: Settings, workdir: WorkDir) -> list[LocalServer]:
    """Create the primary and its replicas, if the settings enable the database."""
    if not settings.stack.database:
        return []
    program = require(find_postgresql, POSTGRESQL, settings)
    primary = Primary(
        workdir,
        program,
        name=database_name(settings.service.app),
        max_connections=settings.stack.max_connections,
        replicas=settings.stack.replicas,
        timeout_s=settings.stack.start_timeout_s,
    )
    return [primary, *(Replica(primary, number) for number in range(1, settings.stack.replicas + 1))]


def database_name(app: str) -> str:
    """Return the database name for ``app``: that of its package where PostgreSQL allows it, else "app"."""
    name = app.partition(":")[0].partition(".")[0].lower()
    usable = re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name) and not name.startswith("pg_")
    return name if usable and name not in _RESERVED else "app"


def connect(url: str) -> psycopg.Connection[Any]:
    """Open a connection in AUTOCOMMIT."""
    try:
        import psycopg
    except ImportError as error:
        raise DependencyError("psycopg is not installed: pip install 'tenfold[stack]'") from error
    return psycopg.connect(url, autocommit=True, connect_timeout=2)


class _PostgreSQL(LocalServer):
    """The base of primary and replica: one data folder, one ``postgres``."""

    # Immediate shutdown: the data are thrown away anyway, and shared memory is freed.
    stop_signal = signal.SIGQUIT

    program: Program
    database: str
    user: str
    password: str
    admin_password: str

    @property
    def url(self) -> str:
        """The URL of the database, as its owner."""
        return self._url(self.user, self.password, self.database)

    @property
    def admin_url(self) -> str:
        """The URL of the database, as the superuser."""
        return self._url(ADMIN, self.admin_password, self.database)

    def _url(self, user: str, password: str, database: str) -> str:
        return f"postgresql://{user}:{password}@{self.address}/{database}"

    @property
    def about(self) -> str:
        """Program and version."""
        return f"PostgreSQL {self.program.version}"

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.workdir.folder / self.slug / "data"

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's own programs to its end."""
        self.workdir.run(
            f"{program} of {self.name}",
            [str(self.program.path.with_name(program)), *arguments],
            cwd=self.data.parent,
            environment={**MINIMAL_ENVIRONMENT, "PGPASSWORD": self.admin_password},
            account=self.workdir.account,
            timeout_s=self.timeout_s,
        )

    def launch(self) -> ProcessGroup:
        """Start ``postgres``; after a kill it recovers by itself."""
        if self._pid_file.exists():
            self._remove_leftovers()
        name = self.slug.replace("-", "_")
        return self.workdir.launch(
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
            environment=MINIMAL_ENVIRONMENT,
            account=self.workdir.account,
            stop_signal=self.stop_signal,
        )

    @property
    def _pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    def _remove_leftovers(self) -> None:
        """End the backends of a killed leader, in sessions of their own, and remove its pid file.

        While a backend lives, ``postgres`` refuses to serve the folder: then the file stays.
        """

        def orphans() -> list[psutil.Process]:
            return processes.find_marked(self.data, {os.path.realpath(self.program.path)})

        processes.signal_all(orphans(), self.stop_signal)
        if processes.wait_until_gone(orphans, timeout_s=KILL_WAIT_S):
            self._pid_file.unlink()

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        """Run ``query`` as the superuser and return its rows.

        Raises:
            psycopg.Error: the server cannot be reached, or refuses the query.
        """
        with connect(self.admin_url) as connection:
            return connection.execute(query.encode()).fetchall()

    def _is_true(self, query: str) -> bool:
        """Return whether the only value of ``query`` is true; False when the server does not answer."""
        import psycopg

        try:
            return self._accepts_connections() and bool(self.fetch(query)[0][0])
        except psycopg.Error:
            return False

    def _accepts_connections(self) -> bool:
        """Return whether its pid file says so; connecting earlier fills its log with FATAL."""
        try:
            return self._pid_file.read_text().split()[-1] in ("ready", "standby")
        except (OSError, IndexError):
            return False


class Primary(_PostgreSQL):
    """The server for writes: scram passwords, loopback, no Unix socket.

    The app's role owns the database, is no superuser and may read all statistics (``pg_monitor``).
    """

    kind = "primary"

    def __init__(
        self,
        workdir: WorkDir,
        program: Program,
        *,
        name: str,
        max_connections: int,
        replicas: int,
        timeout_s: float,
        server_name: str = "primary",
    ) -> None:
        super().__init__(workdir, name=server_name, timeout_s=timeout_s)
        self.program = program
        self.database = self.user = name
        self.password, self.admin_password = secrets.token_hex(16), secrets.token_hex(16)
        self.max_connections = max_connections
        self._owned = False
        self.replicas = replicas

    def placeholders(self) -> Mapping[str, str]:
        """Return ``database_url`` and its parts."""
        return {
            "database_url": self.url,
            "database_host": HOST,
            "database_port": str(self.port),
            "database_user": self.user,
            "database_password": self.password,
            "database_name": self.database,
        }

    def secrets(self) -> Sequence[str]:
        """Return the passwords of the owner and the superuser."""
        return (self.password, self.admin_password)

    def install(self) -> None:
        """Create the cluster, and write the settings that differ from PostgreSQL's defaults."""
        folder = self.workdir.subfolder(self.slug, account=self.workdir.account)
        password = self.workdir.write(
            folder / "password", self.admin_password + "\n", account=self.workdir.account
        )
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self.program.major >= 17 else []
        self._run(
            "initdb",
            f"--pgdata={self.data}",
            f"--username={ADMIN}",
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
            # A replica uses one sender, two while it is cloned.
            "max_wal_senders": str(4 + 2 * self.replicas),
            "max_replication_slots": str(4 + self.replicas),
            # The checkpoint of one clone may remove a segment that another's slot has just reserved.
            "wal_keep_size": "'128MB'",
            # A dead replica's slot keeps WAL: bound it, or it fills the disk.
            "max_slot_wal_keep_size": "'1GB'",
            "log_line_prefix": "'%m [%p] '",
            "timezone": "'UTC'",
            "log_timezone": "'UTC'",
        }

    def is_ready(self) -> bool:
        """Return whether it answers; the first time, create the app's role and give it the database."""
        return self._accepts_connections() and (self._owned or self._create_owner())

    def _create_owner(self) -> bool:
        """Create the app's role and rename initdb's database for it, as a second one is 300 more files.

        The name is an identifier by its pattern, the password is hexadecimal: neither needs quoting.
        """
        import psycopg

        role = f"create role {self.user} login password '{self.password}' in role pg_monitor"
        try:
            with connect(self._url(ADMIN, self.admin_password, "template1")) as connection:
                connection.execute(role.encode())
                connection.execute(f"alter database postgres rename to {self.database}".encode())
                connection.execute(f"alter database {self.database} owner to {self.user}".encode())
        except psycopg.OperationalError:
            return False
        self._owned = True
        return True

    def replication_lag_bytes(self) -> dict[str, int]:
        """Return the bytes of WAL that each streaming replica has yet to replay, by its ``replica_<n>``."""
        rows = self.fetch(
            "select application_name, pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::bigint "
            "from pg_stat_replication where application_name like 'replica%' and state = 'streaming'"
        )
        return {name: max(0, int(lag)) for name, lag in rows if lag is not None}


class Replica(_PostgreSQL):
    """A streaming copy of the primary, read-only, with a replication slot of its own."""

    kind = "replica"
    needs = frozenset({"primary"})

    def __init__(self, primary: Primary, number: int) -> None:
        super().__init__(primary.workdir, name=f"replica {number}", timeout_s=primary.timeout_s)
        self.primary = primary
        self.program, self.database, self.user = primary.program, primary.database, primary.user
        self.password, self.admin_password = primary.password, primary.admin_password
        self._target_position = ""

    def placeholders(self) -> Mapping[str, str]:
        """Return ``replica_urls``: the app gets those of all replicas, joined by commas."""
        return {"replica_urls": self.url}

    def install(self) -> None:
        """Clone the primary as its standby."""
        self.workdir.subfolder(self.slug, account=self.workdir.account)
        self._run(
            "pg_basebackup",
            f"--pgdata={self.data}",
            f"--host={HOST}",
            f"--port={self.primary.port}",
            f"--username={ADMIN}",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--create-slot",
            f"--slot={self.slug.replace('-', '_')}",
            "--write-recovery-conf",
            "--no-sync",
            "--no-manifest",
        )

    def is_ready(self) -> bool:
        """Return whether it answers and streams."""
        return self._is_true("select count(*) = 1 from pg_stat_wal_receiver where status = 'streaming'")

    def is_caught_up(self) -> bool:
        """Return whether it has replayed everything up to the primary's position at the first call."""
        if not self._target_position:
            self._target_position = str(self.primary.fetch("select pg_current_wal_lsn()")[0][0])
        return self._is_true(f"select pg_last_wal_replay_lsn() >= '{self._target_position}'")
