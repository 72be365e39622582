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
from tenfold.stack import environment, targets, workdir
from tenfold.stack.interrupts import deferred
from tenfold.stack.replacement import InstanceTarget
from tenfold.stack.server import LocalServer
from tenfold.stack.servers import wanted
from tenfold.stack.servers.app import app_folder
from tenfold.stack.servers.nginx import Nginx
from tenfold.stack.servers.postgresql import Primary
from tenfold.stack.workdir import CancelledError, Place
from tenfold.types import Server

PREPARED = "prepare"
_PREPARE_TIMEOUTS = 20  # in start timeouts: 10 minutes by default


class Stack:
    """PostgreSQL with replicas, Redis, app instances and nginx, as the settings want them, on loopback.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`. Everything lives in a private folder
    with generated passwords and is gone afterwards: data, logs, processes. When this process is killed, the
    next start of any stack by the same user cleans up after it. Satisfies :class:`tenfold.types.Stack`.

    An app is optional: without one there are the data servers alone, and no :attr:`url`.
    A server that ends later is neither restarted nor does it end the stack: see :meth:`ended`. Logs are not
    rotated: they grow until the stack stops.

    Args:
        settings: what to run; ``[service]`` and ``[stack]`` matter here.
        log: gets a line of progress for every server that became ready.
    """

    def __init__(self, settings: Settings, *, log: Callable[[str], None] | None = None) -> None:
        self._settings = settings
        self._log = log or (lambda line: None)
        self._owner = os.getpid()
        self._place: Place | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._servers: list[LocalServer] = []
        self._environment: dict[str, str] = {}

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

    # What runs

    @property
    def url(self) -> str:
        """The front door: nginx, or the first instance where there is no nginx.

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
        """Where the service's own code lives."""
        return app_folder(self._settings)

    @property
    def database_url(self) -> str | None:
        """The primary, as the database's owner, or None without a database."""
        return next((server.url for server in self._servers if isinstance(server, Primary)), None)

    @property
    def probe_address(self) -> Path:
        """The Unix socket on which the app's probes look for a collector.

        Raises:
            StackError: the stack is not running.
        """
        return self._running().probe_address

    @property
    def access_log(self) -> Path | None:
        """nginx's JSON access log, or None without nginx."""
        return door.access_log if (door := self._door()) else None

    @property
    def environment(self) -> Mapping[str, str]:
        """What the app gets on top of this process's environment; holds passwords."""
        return dict(self._environment)

    @property
    def environment_file(self) -> Path:
        """:attr:`environment` for a shell to read, in a file that only its owner may read.

        Raises:
            StackError: the stack is not running.
        """
        return self._running().folder / "environment"

    def behind(self) -> dict[str, int]:
        """Bytes of the primary's log that each streaming replica has yet to replay, by ``replica_<n>``.

        Raises:
            psycopg.Error: the primary cannot be asked.
        """
        return next((server.behind() for server in self._servers if isinstance(server, Primary)), {})

    def ended(self) -> list[LocalServer]:
        """The servers that have ended since they were started. Cheap enough to ask several times a second."""
        return [server for server in self._servers if server.exit_status is not None and not server.pids()]

    def redacted(self, text: str) -> str:
        """``text`` without any of the stack's passwords."""
        for server in self._servers:
            for secret in server.secrets():
                text = text.replace(secret, "…")
        return text

    def _running(self) -> Place:
        if self._place is None:
            raise StackError("the stack is not running: use it in a with block")
        return self._place

    # Start

    def start(self) -> None:
        """Start everything and return when it is ready; independent servers start at the same time.

        Raises:
            SettingsError: the settings ask for something impossible; nothing was started.
            DependencyError: a program or a library is missing.
            StackError: a server did not start, or a port is taken. Nothing is left running.
        """
        if self._place is not None:
            raise StackError("the stack is already running")
        try:
            self._place = place = workdir.create()
            made = wanted(self._settings, place)
            self._servers = sorted(made, key=lambda server: PREPARED in server.needs)
            self._set_environment(place)
            self._start_all()
        except TenfoldError as error:
            said = self.redacted(str(error))
            self.stop()
            raise type(error)(said) from None
        except BaseException:
            self.stop()
            raise

    def _set_environment(self, place: Place) -> None:
        offers = environment.merged(server.offers() for server in self._servers)
        service = self._settings.service
        self._environment = environment.standard(offers) | environment.filled(service.environment, offers)
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in self._environment.items()]
        place.write(place.folder / "environment", "".join(lines))
        for server in self._servers:
            server.peers = self._servers
            server.app_environment = {**_inherited(), **self._environment}

    def _start_all(self) -> None:
        self._pool = pool = ThreadPoolExecutor(len(self._servers) + 1, thread_name_prefix="stack")
        futures: dict[str, list[Future[None]]] = {}
        before = [server for server in self._servers if PREPARED not in server.needs]
        after = [server for server in self._servers if PREPARED in server.needs]
        command = self._prepare_command()
        for server in before:
            self._submit(pool, futures, server)
        # Whatever the app is told about is there when the preparation runs.
        told = [future for server in before if server.offers() for future in futures[server.kind]]
        futures[PREPARED] = [pool.submit(self._prepare, command, told)]
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
        _await(needed)
        begun = time.monotonic()
        server.start()
        self._log(f"{server.name} ready after {time.monotonic() - begun:.1f} s")

    def _prepare_command(self) -> Sequence[str]:
        if not self._settings.service.prepare:
            return ()
        seen = {**_inherited(), **self._environment}
        return targets.command(self._settings.service.prepare, self.app_folder, seen)

    def _prepare(self, command: Sequence[str], needed: Sequence[Future[None]]) -> None:
        _await(needed)
        if not command:
            return
        place, timeout_s = self._running(), self._settings.stack.start_timeout_s
        begun = time.monotonic()
        place.run(
            PREPARED,
            command,
            cwd=self.app_folder,
            environment={**_inherited(), **self._environment},
            timeout_s=_PREPARE_TIMEOUTS * timeout_s,
        )
        for server in self._servers:
            if server.offers() and not place.wait(partial(_settled, server), timeout_s=timeout_s):
                raise StackError(f"{server.name} has not taken in what prepare did within {timeout_s:g} s")
        self._log(f"prepared after {time.monotonic() - begun:.1f} s")

    # Change

    def restart(self, server: Server) -> None:
        """Start ``server`` again, on the same port with the same data; one that runs is ended first.

        Redis keeps nothing and comes up empty. An instance that a failed replacement left out of nginx is
        let in again. Not for several at a time.

        Raises:
            StackError: it is none of this stack's, or did not start.
        """
        own = self._own(server)
        own.stop()
        own.start()
        if (door := self._door()) and own.address in door.out:
            door.let(own.address, take=True)

    def replace(self, server: Server) -> Replacement:
        """Replace an app instance by a new one on the same port, while the others take its requests.

        It leaves nginx, finishes its requests, ends, starts, and is let in when it is ready. How long its
        requests may take is ``balancing.drain_timeout_s``; what then still runs is cut. Clients with an idle
        connection need nginx 1.27.4 or newer to notice nothing. Not for several at a time.

        Raises:
            StackError: it is no app instance of this stack, or nobody else would take its requests.
            ReplacementError: the new one did not come up and gets no requests; :meth:`restart` tries again.
        """
        own, door = self._own(server), self._door()
        others = [other for other in self._servers if other.kind == "app" and other is not own]
        if own.kind != "app" or door is None:
            raise StackError(f"{own.name} cannot be replaced: only app instances behind nginx can be")
        if not any(other.ready() for other in others if other.address not in door.out):
            raise StackError(
                f"{own.name} cannot be replaced: no other instance is there to take its requests"
            )
        self._log(f"replacing {own.name}")
        instance = InstanceTarget(own, door, drain_timeout_s=self._settings.balancing.drain_timeout_s)
        return rolling.replace(instance, drain_timeout_s=instance.drain_timeout_s)

    def _door(self) -> Nginx | None:
        return next((server for server in self._servers if isinstance(server, Nginx)), None)

    def _own(self, server: Server) -> LocalServer:
        self._running()
        for own in self._servers:
            if own is server:
                return own
        raise StackError(f"{server.name} is not a server of this stack")

    # Stop

    def stop(self) -> None:
        """End everything and remove the private folder; nothing happens when nothing runs.

        A Ctrl-C, SIGTERM or SIGHUP meanwhile makes it hurry, and takes effect when it is done. In a process
        that was forked from the one that made the stack it does nothing.

        Raises:
            StackError: the folder could not be removed.
        """
        if self._place is None or os.getpid() != self._owner:
            return
        with deferred() as hurry:
            self._place.cancel()
            # First those who use the others; a database that is gone makes noise in every app's log.
            for wave in (False, True):
                self._stop_wave([server for server in self._servers if bool(server.offers()) is wave], hurry)
            if self._pool:
                self._pool.shutdown(wait=True, cancel_futures=True)
            self._place.close()
            self._place, self._pool, self._servers = None, None, []

    def _stop_wave(self, servers: Sequence[LocalServer], hurry: Callable[[], bool]) -> None:
        if servers:
            with ThreadPoolExecutor(len(servers)) as pool:
                list(pool.map(lambda server: server.stop(hurry=hurry), servers))


def _inherited() -> dict[str, str]:
    """This process's environment, made independent of the folder that it runs in."""
    inherited = dict(os.environ)
    if path := inherited.get("PYTHONPATH"):
        entries = [os.path.abspath(entry) for entry in path.split(os.pathsep)]  # noqa: PTH100 - "" is "." here
        inherited["PYTHONPATH"] = os.pathsep.join(entries)
    return inherited


def _settled(server: LocalServer) -> bool | None:
    return server.settled() or None


def _await(needed: Sequence[Future[None]]) -> None:
    """Wait for what has to be there first; when it failed, its own error is the one to report."""
    for future in needed:
        if future.exception():
            raise CancelledError("something it needs did not start")


def _raise_first(futures: Sequence[Future[None]]) -> None:
    """The first real error among ``futures``, if any; givings-up are consequences of it."""
    errors = [future.exception() for future in futures if future.done() and not future.cancelled()]
    real = [error for error in errors if error and not isinstance(error, CancelledError)]
    if real:
        raise real[0]
