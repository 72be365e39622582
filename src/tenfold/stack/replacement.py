"""The steps of :mod:`tenfold.balancing.rolling` for an app instance behind nginx."""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.errors import StackError
from tenfold.stack.server import LocalServer
from tenfold.stack.servers.nginx import Nginx


@dataclass(frozen=True, slots=True)
class InstanceTarget:
    """One instance of a stack. Satisfies :class:`tenfold.balancing.rolling.ReplaceableInstance`."""

    instance: LocalServer
    nginx: Nginx
    drain_timeout_s: float

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.instance.name

    def leave(self) -> None:
        """Mark it as down in nginx."""
        self.nginx.set_down(self.instance.address, down=True)

    def is_drained(self) -> bool:
        """Return whether the nginx workers that could still send it requests are gone."""
        return self.nginx.is_drained()

    def stop(self) -> None:
        """End it with SIGTERM, and time for its shutdown."""
        self.instance.stop(grace_s=self.drain_timeout_s)

    def start(self) -> None:
        """Start it and wait until it is ready; end it if it does not become ready."""
        try:
            self.instance.start()
        except StackError:
            self.instance.stop()
            raise

    def is_ready(self) -> bool:
        """Return whether its ready path answers."""
        return self.instance.is_ready()

    def join(self) -> None:
        """Let nginx send it requests again."""
        self.nginx.set_down(self.instance.address, down=False)
