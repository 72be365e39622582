"""The running servers of a service on this machine."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tenfold.balancing import rolling
from tenfold.balancing.rolling import Replacement
from tenfold.errors import StackError, TenfoldError
from tenfold.settings import Settings
from tenfold.sharding.administration import DirectoryStore, create_shards
from tenfold.sharding.keys import parse_key_types
from tenfold.stack import environment
from tenfold.stack.interrupts import defer_signals
from tenfold.stack.prepare import prepare_command
from tenfold.stack.replacement import InstanceTarget
from tenfold.stack.server import LocalServer
from tenfold.stack.servers import create_servers
from tenfold.stack.servers.app import create_instance
from tenfold.stack.servers.nginx import Nginx
from tenfold.stack.servers.postgresql import Primary
from tenfold.stack.servers.shards import ShardServer
from tenfold.stack.service_python import service_python, variables_of_file, with_scripts_on_path
from tenfold.stack.workdir import INSTANCES, CancelledError, WorkDir, create_workdir
from tenfold.types import Server

PREPARE = "prepare"
_PREPARE_START_TIMEOUTS = 20  # 10 minutes by default


class Stack:
    """PostgreSQL with replicas, Redis, app instances and nginx, as the settings want them, on loopback.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. Everything lives in a private folder
    with generated passwords and is removed afterwards: data, logs, processes. When this process is killed,
    the next start of any stack by the same user cleans up after it. Satisfies :class:`tenfold.types.Stack`.

    An app is optional: without one only the data servers run, and there is no :attr:`url`. A server that ends
    later is neither restarted nor does it end the stack: see :meth:`ended_servers`. Logs are not rotated:
    they grow until the stack stops.

    Args:
        settings: what to run; ``[service]`` and ``[stack]`` matter here.
        log: called with a line of progress for every server that became ready.
    """

    def __init__(self, settings: Settings, *, log: Callable[[str], None] | None = None) -> None:
        self._settings = settings
        self._log = log or (lambda line: None)
        self._owner = os.getpid()
        self._workdir: WorkDir | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._servers: list[LocalServer] = []
        self._environment: dict[str, str] = {}
        self._leaving: tuple[LocalServer, ...] = ()  # instances that :meth:`scale` starts or ends

    def __enter__(self) -> Self:
        """Start; see :meth:`start`."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; see :meth:`stop`."""
        self.stop()

    # ------------------------------------------------------------------ what runs

    @property
    def url(self) -> str:
        """The address for clients: nginx, or the first instance without nginx.

        Raises:
            StackError: the stack has no app, or is not running.
        """
        for kind in ("nginx", "app"):
            for server in self._servers:
                if server.kind == kind:
                    return server.url
        raise StackError("this stack has no app: name one in [service] app, and start the stack")

    @property
    def servers(self) -> Sequence[LocalServer]:
        """Every server, in the order in which they were started."""
        return tuple(self._servers)

    @property
    def app_folder(self) -> Path:
        """The folder that the app is imported from."""
        return self._settings.app_folder

    @property
    def database_url(self) -> str | None:
        """The URL of the primary, as the database's owner, or None without a database."""
        return next((server.url for server in self._servers if server.kind == "primary"), None)

    @property
    def probe_address(self) -> Path:
        """The Unix socket on which the app's probes look for a collector.

        Raises:
            StackError: the stack is not running.
        """
        return self._require_workdir().probe_address

    @property
    def access_log(self) -> Path | None:
        """nginx's JSON access log, or None without nginx."""
        return nginx.access_log if (nginx := self._nginx()) else None

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that the app gets in addition to this process's environment; with passwords."""
        return dict(self._environment)

    @property
    def environment_file(self) -> Path:
        """A file with :attr:`environment` for a shell to source; only its owner may read it.

        Raises:
            StackError: the stack is not running.
        """
        return self._require_workdir().folder / "environment"

    def replication_lag_bytes(self) -> dict[str, int]:
        """Return the bytes of WAL that each streaming replica has yet to replay, by ``replica_<n>``.

        Raises:
            psycopg.Error: the primary cannot be queried.
        """
        primary = next((server for server in self._servers if server.kind == "primary"), None)
        return primary.replication_lag_bytes() if isinstance(primary, Primary) else {}

    def ended_servers(self) -> list[LocalServer]:
        """Return the servers that have ended since they started. Cheap enough for several calls a second."""
        return [
            server
            for server in self.servers
            if server not in self._leaving and server.exit_status is not None and not server.pids()
        ]

    def redact(self, text: str) -> str:
        """Return ``text`` without the stack's passwords."""
        for server in self._servers:
            for secret in server.secrets():
                text = text.replace(secret, "…")
        return text

    def _require_workdir(self) -> WorkDir:
        if self._workdir is None:
            raise StackError("the stack is not running: use it in a with block")
        return self._workdir

    # ------------------------------------------------------------------ start

    def start(self) -> None:
        """Start everything and return when it is ready; independent servers start at the same time.

        Raises:
            SettingsError: the settings ask for something impossible; nothing was started.
            DependencyError: a program or a library is missing.
            StackError: a server did not start, or a port is taken. Nothing is left running.
        """
        if self._workdir is not None:
            raise StackError("the stack is already running")
        try:
            self._workdir = workdir = create_workdir()
            servers = create_servers(self._settings, workdir)
            self._servers = sorted(servers, key=lambda server: PREPARE in server.needs)
            self._set_environment(workdir)
            self._start_all()
        except TenfoldError as error:
            message = self.redact(str(error))
            self.stop()
            raise type(error)(message) from None
        except BaseException:
            self.stop()
            raise

    def _set_environment(self, workdir: WorkDir) -> None:
        placeholders = environment.merge_placeholders(server.placeholders() for server in self._servers)
        service = self._settings.service
        self._environment = (
            variables_of_file(self._settings)
            | environment.standard_variables(placeholders)
            | environment.fill_placeholders(service.environment, placeholders)
        )
        variables = dict(self._environment)
        for server in self._servers:
            variables |= server.variables()
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        workdir.write(workdir.folder / "environment", "".join(lines))
        self._note_instances()
        for server in self._servers:
            server.peers = self._servers
            server.app_environment = {**_inherited_environment(), **self._environment}

    def _note_instances(self) -> None:
        """Write down where the instances listen, for ``tenfold top``."""
        workdir = self._require_workdir()
        addresses = [f"{server.address}\n" for server in self._servers if server.kind == "app"]
        workdir.write(workdir.folder / f"{INSTANCES}.new", "".join(addresses)).replace(
            workdir.folder / INSTANCES
        )

    def _start_all(self) -> None:
        self._pool = pool = ThreadPoolExecutor(len(self._servers) + 1, thread_name_prefix="stack")
        futures: dict[str, list[Future[None]]] = {}
        before = [server for server in self._servers if PREPARE not in server.needs]
        after = [server for server in self._servers if PREPARE in server.needs]
        command = self._prepare_command()
        for server in before:
            self._submit(pool, futures, server)
        # Every server in the app's environment is ready when ``prepare`` runs.
        needed = [future for server in before if server.placeholders() for future in futures[server.kind]]
        futures[PREPARE] = [pool.submit(self._prepare, command, needed)]
        for server in after:
            self._submit(pool, futures, server)
        every = [future for some in futures.values() for future in some]
        wait(every, return_when=FIRST_EXCEPTION)
        _raise_first(every)

    def _submit(
        self, pool: ThreadPoolExecutor, futures: dict[str, list[Future[None]]], server: LocalServer
    ) -> None:
        needed = [future for kind in server.needs for future in futures.get(kind, ())]
        futures.setdefault(server.kind, []).append(pool.submit(self._start_one, server, needed))

    def _start_one(self, server: LocalServer, needed: Sequence[Future[None]]) -> None:
        _wait_for(needed)
        started = time.monotonic()
        server.start()
        self._log(f"{server.name} ready after {time.monotonic() - started:.1f} s")

    def _prepare_command(self) -> Sequence[str]:
        if not self._settings.service.prepare:
            return ()
        variables = {**_inherited_environment(), **self._environment}
        return prepare_command(self._settings, variables)

    def _prepare(self, command: Sequence[str], needed: Sequence[Future[None]]) -> None:
        _wait_for(needed)
        self._create_shards()
        if not command:
            return
        workdir, timeout_s = self._require_workdir(), self._settings.stack.start_timeout_s
        started = time.monotonic()
        workdir.run(
            PREPARE,
            command,
            cwd=self._settings.working_folder,
            environment=with_scripts_on_path(
                {**_inherited_environment(), **self._environment}, service_python(self._settings)
            ),
            timeout_s=_PREPARE_START_TIMEOUTS * timeout_s,
        )
        for server in self._servers:
            if server.placeholders() and not workdir.wait(
                partial(_is_caught_up, server), timeout_s=timeout_s
            ):
                raise StackError(f"{server.name} has not replayed what prepare wrote within {timeout_s:g} s")
        self._log(f"prepared after {time.monotonic() - started:.1f} s")

    def _create_shards(self) -> None:
        """Create the directory of shards on the primary, and what each shard needs, as the app's role."""
        servers = [server for server in self._servers if isinstance(server, ShardServer)]
        if servers and self.database_url:
            urls = {name: url for server in servers for name, url in server.shard_urls().items()}
            types = parse_key_types(self._settings.sharding.key)
            create_shards(DirectoryStore(self.database_url), dict(sorted(urls.items())), types)

    # ------------------------------------------------------------------ restart and replace

    def restart(self, server: Server) -> None:
        """Start ``server`` again, on the same port with the same data; a running one is ended first.

        Redis starts empty. An instance that a failed replacement left down in nginx is marked as up again.
        Not for several at a time.

        Raises:
            StackError: it is not a server of this stack, or did not start.
        """
        own = self._own_server(server)
        own.stop()
        own.start()
        if (nginx := self._nginx()) and own.address in nginx.down:
            nginx.set_down(own.address, down=False)

    def replace(self, server: Server) -> Replacement:
        """Replace an app instance by a new one on the same port, while the others take its requests.

        It is marked as down in nginx, finishes its requests, ends, starts, and is marked as up when it is
        ready. Requests that take longer than ``balancing.drain_timeout_s`` are cut. With nginx older than
        1.27.4 a client with an idle connection may see a failed request. Not for several at a time.

        Raises:
            StackError: it is no app instance of this stack, or no other instance would take its requests.
            ReplacementError: the new one did not become ready and gets no requests; :meth:`restart` tries
            again.
        """
        own, nginx = self._own_server(server), self._nginx()
        others = [other for other in self._servers if other.kind == "app" and other is not own]
        if own.kind != "app" or nginx is None:
            raise StackError(f"{own.name} cannot be replaced: only app instances behind nginx can be")
        if not any(other.is_ready() for other in others if other.address not in nginx.down):
            raise StackError(
                f"{own.name} cannot be replaced: no other instance is ready to take its requests"
            )
        self._log(f"replacing {own.name}")
        instance = InstanceTarget(own, nginx, drain_timeout_s=self._settings.balancing.drain_timeout_s)
        return rolling.replace(instance, drain_timeout_s=instance.drain_timeout_s)

    def scale(self, count: int) -> None:
        """Start or end app instances behind nginx until there are ``count``; no request fails meanwhile.

        New ones get requests when they are ready; the newest end first, when their requests are answered.
        Requests that take longer than ``balancing.drain_timeout_s`` are cut. Not for several at a time.

        Raises:
            StackError: there is no nginx, or the instances have weights or backups; one did not start.
        """
        nginx, balancing = self._nginx(), self._settings.balancing
        self._require_workdir()
        if nginx is None or count < 1 or balancing.weights or balancing.backups:
            raise StackError(
                f"the instances cannot be scaled to {count}: that takes nginx, an instance or more, and "
                "neither balancing.weights nor balancing.backups"
            )
        instances = [server for server in self._servers if server.kind == "app"]
        if count > len(instances):
            self._add_instances(count - len(instances), nginx)
        elif count < len(instances):
            self._remove_instances(instances[count:], nginx)
        self._note_instances()

    def _add_instances(self, count: int, nginx: Nginx) -> None:
        known = {server.name for server in self._servers}
        names = [name for number in range(2, 10_000) if (name := f"app {number}") not in known][:count]
        added = [create_instance(self._settings, self._require_workdir(), name) for name in names]
        nginx.leave_out([server.address for server in added])
        self._leaving = tuple(added)
        for server in added:
            server.peers = self._servers
            server.app_environment = {**_inherited_environment(), **self._environment}
            self._servers.append(server)
        try:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(lambda server: self._start_one(server, ()), added))
        except BaseException:
            self._end_instances(added, nginx)
            raise
        self._leaving = ()
        nginx.forget([server.address for server in added])

    def _remove_instances(self, instances: Sequence[LocalServer], nginx: Nginx) -> None:
        drain_s = self._settings.balancing.drain_timeout_s
        nginx.leave_out([server.address for server in instances])
        self._require_workdir().wait(lambda: nginx.is_drained() or None, timeout_s=drain_s)
        self._leaving = tuple(instances)
        self._end_instances(instances, nginx, grace_s=drain_s)

    def _end_instances(
        self, instances: Sequence[LocalServer], nginx: Nginx, *, grace_s: float | None = None
    ) -> None:
        for server in instances:
            server.stop(grace_s=grace_s)
            if server in self._servers:  # the stack may have been stopped meanwhile
                self._servers.remove(server)
        self._leaving = ()
        nginx.forget([server.address for server in instances])

    def _nginx(self) -> Nginx | None:
        return next((server for server in self._servers if isinstance(server, Nginx)), None)

    def _own_server(self, server: Server) -> LocalServer:
        self._require_workdir()
        for own in self._servers:
            if own is server:
                return own
        raise StackError(f"{server.name} is not a server of this stack")

    # ------------------------------------------------------------------ stop

    def stop(self) -> None:
        """End every server and remove the private folder; does nothing when the stack is not running.

        A Ctrl-C, SIGTERM or SIGHUP meanwhile skips the graces, and takes effect when it is done. In a process
        that was forked from the one that made the stack it does nothing.

        Raises:
            StackError: the folder could not be removed.
        """
        if self._workdir is None or os.getpid() != self._owner:
            return
        with defer_signals() as interrupted:
            self._workdir.cancel()
            # Clients of other servers first: a missing database fills every app's log with errors.
            for wave in (False, True):
                self._stop_wave(
                    [server for server in self._servers if bool(server.placeholders()) is wave], interrupted
                )
            if self._pool:
                self._pool.shutdown(wait=True, cancel_futures=True)
            self._workdir.close()
            self._workdir, self._pool, self._servers = None, None, []

    def _stop_wave(self, servers: Sequence[LocalServer], interrupted: Callable[[], bool]) -> None:
        if servers:
            with ThreadPoolExecutor(len(servers)) as pool:
                list(pool.map(lambda server: server.stop(interrupted=interrupted), servers))


def _inherited_environment() -> dict[str, str]:
    """Return this process's environment, with PYTHONPATH independent of the working folder."""
    inherited = dict(os.environ)
    if path := inherited.get("PYTHONPATH"):
        entries = [os.path.abspath(entry) for entry in path.split(os.pathsep)]  # noqa: PTH100 - "" is "." here
        inherited["PYTHONPATH"] = os.pathsep.join(entries)
    return inherited


def _is_caught_up(server: LocalServer) -> bool | None:
    return server.is_caught_up() or None


def _wait_for(needed: Sequence[Future[None]]) -> None:
    """Wait for other servers; when one failed, its own error is the one to report."""
    for future in needed:
        if future.exception():
            raise CancelledError("a server that it needs did not start")


def _raise_first(futures: Sequence[Future[None]]) -> None:
    """Raise the first error among ``futures``, if any; cancellations are only consequences of it."""
    errors = [future.exception() for future in futures if future.done() and not future.cancelled()]
    real = [error for error in errors if error and not isinstance(error, CancelledError)]
    if real:
        raise real[0]
