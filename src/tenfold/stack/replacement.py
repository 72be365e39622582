"""An app instance behind nginx as what can be replaced: the steps of :mod:`tenfold.balancing.rolling`."""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.errors import StackError
from tenfold.stack.server import LocalServer
from tenfold.stack.servers.nginx import Nginx


@dataclass(frozen=True, slots=True)
class InstanceTarget:
    """One instance of a stack. Satisfies :class:`tenfold.balancing.rolling.ReplaceableInstance`."""

    instance: LocalServer
    door: Nginx
    drain_timeout_s: float

    @property
    def name(self) -> str:
        """The instance's."""
        return self.instance.name

    def leave(self) -> None:
        """Mark it as down in nginx."""
        self.door.let(self.instance.address, take=False)

    def is_drained(self) -> bool:
        """Whether the workers that could still send it something are gone."""
        return self.door.drained()

    def stop(self) -> None:
        """SIGTERM, and time for what the app does at its end."""
        self.instance.stop(grace_s=self.drain_timeout_s)

    def start(self) -> None:
        """Start it and wait until it is ready; what does not get there is ended."""
        try:
            self.instance.start()
        except StackError:
            self.instance.stop()
            raise

    def is_ready(self) -> bool:
        """Whether its ready path answers."""
        return self.instance.ready()

    def join(self) -> None:
        """Let nginx send it requests again."""
        self.door.let(self.instance.address, take=True)
