"""What every server of a stack has in common."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tenfold.errors import StackError
from tenfold.stack.logs import ending, failure
from tenfold.stack.ports import HOST, free_port
from tenfold.stack.processes import ProcessGroup
from tenfold.stack.workdir import Place

PLAIN_ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""What servers other than the app get: nothing of the user's environment, where secrets live."""


class LocalServer(ABC):
    """A server on a loopback port of its own. Satisfies :class:`tenfold.types.Server`.

    A kind of server is one file in :mod:`tenfold.stack.servers` with a subclass and a function
    ``servers(settings, place) -> list[LocalServer]`` that makes those that the settings ask for.

    Args:
        place: the stack's private folder.
        name: which one of its kind.
        timeout_s: longest wait until it is ready, seconds.
        port: where it listens; 0 takes a free port.
    """

    kind: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Kinds that must be ready before this one is started; those that a stack lacks are passed over."""
    stop_signal: ClassVar[int] = signal.SIGTERM
    grace_s: ClassVar[float] = 1.5

    def __init__(self, place: Place, *, name: str, timeout_s: float, port: int = 0) -> None:
        self.place = place
        self.name = name
        self.port = port or free_port()
        self.timeout_s = timeout_s
        self.peers: Sequence[LocalServer] = ()  # all servers of the stack, before the first is started
        self.app_environment: Mapping[str, str] = {}  # for those that run the user's code
        self._group: ProcessGroup | None = None
        self._installed = False

    @property
    def slug(self) -> str:
        """The name as part of paths: ``replica-1``."""
        return self.name.replace(" ", "-")

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it listens, password included."""

    @property
    def admin_url(self) -> str:
        """The same with all rights, where the server knows roles."""
        return self.url

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """What the server wrote to stdout and stderr."""
        return self.place.log(self.name)

    @property
    def about(self) -> str:
        """Program and version for people: ``PostgreSQL 18.4``."""
        return ""

    def pids(self) -> tuple[int, ...]:
        """The living processes of its group, the leader first; empty when it ended."""
        return self._group.pids() if self._group else ()

    def offers(self) -> Mapping[str, str]:
        """Placeholders for the app's environment; the same one from several servers is joined by commas."""
        return {}

    def secrets(self) -> Sequence[str]:
        """What must not be shown."""
        return ()

    def install(self) -> None:  # noqa: B027 - most have nothing to do here
        """Make the files that the server needs once, before its first start."""

    @abstractmethod
    def launch(self) -> ProcessGroup:
        """Start its program."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it can be used now; asked again and again until it says True."""

    def settled(self) -> bool:
        """Whether it has taken in all that was written before; asked after the preparation."""
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
        ready = self.place.wait(self._ready_or_ended, timeout_s=self.timeout_s)
        if not ready:
            raise StackError(failure(self._verdict(ready is None), self.log))

    def _ready_or_ended(self) -> bool | None:
        """True: ready, False: ended, None: neither yet. What answers while the program is gone is not it."""
        answer = self.ready()
        if self._group is None or self._group.exit_status is not None:
            return False
        return answer or None

    def _verdict(self, late: bool) -> str:
        status = self._group.exit_status if self._group else None
        if late:
            return f"{self.name} was not ready within {self.timeout_s:g} s{self.excuse()}"
        return f"{self.name} ended before it was ready ({ending(status)})"

    def excuse(self) -> str:
        """What is known about why it is not ready, as the end of a sentence."""
        return ""

    @property
    def exit_status(self) -> int | None:
        """What its program ended with; None while it runs and when it was never started."""
        return self._group.exit_status if self._group else None

    def stop(self, *, grace_s: float | None = None, hurry: Callable[[], bool] = lambda: False) -> None:
        """End it and all that it started; nothing happens when it is not running.

        Args:
            grace_s: how long it may take before it is killed, seconds; None is what its kind usually gets.
            hurry: when it says True, the grace is over at once.
        """
        if self._group:
            grace_s = self.grace_s if grace_s is None else grace_s
            self._group.stop(number=self.stop_signal, grace_s=grace_s, hurry=hurry)
