"""The base class of a stack's servers."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tenfold.errors import StackError
from tenfold.stack.logs import exit_text, failure_message
from tenfold.stack.ports import HOST, free_port
from tenfold.stack.processes import ProcessGroup, never
from tenfold.stack.workdir import WorkDir

MINIMAL_ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""For servers other than the app: nothing of the user's environment, which may hold secrets."""


class LocalServer(ABC):
    """A server on a loopback port of its own. Satisfies :class:`tenfold.types.Server`.

    A kind of server is one file in :mod:`tenfold.stack.servers` with a subclass and a function
    ``create_servers(settings, workdir) -> list[LocalServer]`` that makes those that the settings ask for.

    Args:
        workdir: the stack's private folder.
        name: unique in the stack: ``app 2``; the kind itself when there is one.
        timeout_s: longest wait until it is ready, seconds.
        port: where it listens; 0 takes a free port.
    """

    kind: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Kinds that must be ready before this one is started, as far as the stack has them."""
    stop_signal: ClassVar[int] = signal.SIGTERM
    grace_s: ClassVar[float] = 1.5

    def __init__(self, workdir: WorkDir, *, name: str, timeout_s: float, port: int = 0) -> None:
        self.workdir = workdir
        self.name = name
        self.port = port or free_port()
        self.timeout_s = timeout_s
        self.peers: Sequence[LocalServer] = ()  # all servers of the stack, before the first is started
        self.app_environment: Mapping[str, str] = {}  # for servers that run the user's code
        self._group: ProcessGroup | None = None
        self._installed = False

    @property
    def slug(self) -> str:
        """The name as part of paths: ``replica-1``."""
        return self.name.replace(" ", "-")

    @property
    @abstractmethod
    def url(self) -> str:
        """Its address as a URL, password included."""

    @property
    def admin_url(self) -> str:
        """The URL of its superuser, where the server has roles."""
        return self.url

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """The file with its stdout and stderr."""
        return self.workdir.log(self.name)

    @property
    def about(self) -> str:
        """Program and version for display: ``PostgreSQL 18.4``."""
        return ""

    def pids(self) -> tuple[int, ...]:
        """Return the running processes of its group, the leader first; empty when it ended."""
        return self._group.pids() if self._group else ()

    def placeholders(self) -> Mapping[str, str]:
        """Return placeholders for the app's environment, such as ``redis_url``, and their values."""
        return {}

    def variables(self) -> Mapping[str, str]:
        """Return variables for the file that users source, beside those of the app."""
        return {}

    def secrets(self) -> Sequence[str]:
        """Return the passwords to redact."""
        return ()

    def install(self) -> None:  # noqa: B027 - most have nothing to do here
        """Make the files that the server needs, once, before its first start."""

    @abstractmethod
    def launch(self) -> ProcessGroup:
        """Start its program."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether it can be used now; polled until it returns True."""

    def is_refused(self) -> bool:
        """Return whether it answers in a way that waiting does not change; asked while it is not ready."""
        return False

    def is_caught_up(self) -> bool:
        """Return whether it has replayed all earlier writes; polled after ``prepare``."""
        return True

    def start(self) -> None:
        """Start it and return when it is ready.

        Raises:
            StackError: it ended, or was not ready in time; the message has its last lines.
        """
        if not self._installed:
            self.install()
            self._installed = True
        self._group = self.launch()
        ready = self.workdir.wait(self._ready_or_ended, timeout_s=self.timeout_s)
        if not ready:
            raise StackError(failure_message(self._start_failure(late=ready is None), self.log))

    def _ready_or_ended(self) -> bool | None:
        """Return True: ready, False: ended (any answer is then another program's), None: neither yet."""
        answer = self.is_ready()
        if self._group is None or self._group.exit_status is not None:
            return False
        if not answer and self.is_refused():
            raise StackError(f"{self.name} does not become ready{self.not_ready_reason()}")
        return answer or None

    def _start_failure(self, *, late: bool) -> str:
        status = self._group.exit_status if self._group else None
        if late:
            return f"{self.name} was not ready within {self.timeout_s:g} s{self.not_ready_reason()}"
        return f"{self.name} ended before it was ready ({exit_text(status)})"

    def not_ready_reason(self) -> str:
        """Return why it is not ready, as the end of a sentence; empty if unknown."""
        return ""

    @property
    def exit_status(self) -> int | None:
        """The exit status of its program; None while it runs and when it was never started."""
        return self._group.exit_status if self._group else None

    def stop(self, *, grace_s: float | None = None, interrupted: Callable[[], bool] = never) -> None:
        """End it and every process that it started; does nothing when it is not running.

        Args:
            grace_s: seconds until it is killed; None is the default of its kind.
            interrupted: when it returns True, the grace is over at once.
        """
        if self._group:
            grace_s = self.grace_s if grace_s is None else grace_s
            self._group.stop(number=self.stop_signal, grace_s=grace_s, interrupted=interrupted)
