"""nginx: the front door of a stack with an app."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from tenfold.balancing import nginx as fragments
from tenfold.balancing.settings import BalancingSettings, upstream
from tenfold.deploy import nginx
from tenfold.errors import StackError
from tenfold.settings import Settings
from tenfold.stack.logs import failure
from tenfold.stack.ports import HOST, claimed
from tenfold.stack.processes import ProcessGroup
from tenfold.stack.programs import NGINX, Program, find_nginx, required
from tenfold.stack.server import PLAIN_ENVIRONMENT, LocalServer
from tenfold.stack.workdir import Place

_HERE = (HOST, "localhost")


def servers(settings: Settings, place: Place) -> list[LocalServer]:
    """One nginx, if the settings want it and there is an app to stand in front of."""
    if not settings.stack.nginx or not settings.service.app:
        return []
    program = required(find_nginx, NGINX, settings)
    port, timeout_s = claimed(settings.stack.port), settings.stack.start_timeout_s
    return [Nginx(place, program, settings.balancing, port=port, timeout_s=timeout_s)]


class Nginx(LocalServer):
    """The front door. As root, its master stays root and its workers do not."""

    kind = "nginx"
    needs = frozenset({"prepare", "app"})  # nobody meets a 502 because the stack is still starting

    def __init__(
        self, place: Place, program: Program, settings: BalancingSettings, *, port: int, timeout_s: float
    ) -> None:
        super().__init__(place, name="nginx", timeout_s=timeout_s, port=port)
        self.program = program
        self._settings = settings
        self._out: frozenset[str] = frozenset()
        self._workers: frozenset[int] = frozenset()

    @property
    def url(self) -> str:
        """The front door."""
        return f"http://{self.address}"

    @property
    def about(self) -> str:
        """Program and version."""
        return f"nginx {self.program.version}"

    @property
    def access_log(self) -> Path:
        """One JSON object a request; see :data:`tenfold.deploy.nginx.ACCESS_LOG` for its fields."""
        return self._folder / "access.log"

    @property
    def out(self) -> frozenset[str]:
        """The addresses of instances that get no requests."""
        return self._out

    @property
    def _folder(self) -> Path:
        return self.place.folder / "nginx"

    def install(self) -> None:
        """Render the configuration."""
        self.place.subfolder("nginx")
        self._write()

    def _write(self) -> None:
        account, settings = self.place.account, self._settings
        addresses = [peer.address for peer in self.peers if peer.kind == "app"]
        door = nginx.FrontDoor(
            listen=self.address,
            upstream=upstream(settings, addresses, out=self._out),
            version=fragments.version(self.program.version),
            account=(account.name, account.group) if account else None,
            server_names=(*settings.server_names, *_HERE) if settings.server_names else (),
            body_bytes=settings.body_bytes,
            header_bytes=settings.header_bytes,
            drain_timeout_s=settings.drain_timeout_s,
            client_idle_s=settings.client_idle_s,
        )
        for file in nginx.render(door):
            draft = self._folder / f"{file.path}.new"
            draft.unlink(missing_ok=True)  # of a writer that was interrupted
            self.place.write(draft, file.text)
            os.replace(draft, self._folder / file.path)  # noqa: PTH105 - in one step, also for who reads it now

    def launch(self) -> ProcessGroup:
        """Start it in its folder."""
        return self.place.launch(
            self.name,
            [str(self.program.path), "-p", f"{self._folder}/", "-c", "nginx.conf", "-e", "stderr"],
            cwd=self._folder,
            environment=PLAIN_ENVIRONMENT,
            number=self.stop_signal,
        )

    def ready(self) -> bool:
        """Whether it takes connections; what stands behind it has checks of its own."""
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def let(self, address: str, *, take: bool) -> None:
        """Let the instance at ``address`` take requests or not, from the next one on.

        Requests that are under way stay where they are: see :meth:`drained`.

        Raises:
            StackError: nginx did not take the new configuration; the one before is in force.
        """
        before = self._out
        self._out = before - {address} if take else before | {address}
        try:
            self._write()
            self._reload()
        except BaseException:
            self._out = before
            self._write()
            raise

    def _reload(self) -> None:
        if self._group is None or not (old := frozenset(self.pids()[1:])):
            raise StackError(
                f"{self.name} does not run, so that it cannot be told anything: restart it first"
            )
        self._workers = old
        self._group.tell(signal.SIGHUP)
        # A configuration that nginx refuses is only in its log: what shows is that no new worker comes.
        if not self.place.wait(lambda: self._has_new_worker() or None, timeout_s=self.timeout_s):
            raise StackError(failure(f"{self.name} did not take its new configuration", self.log))

    def _has_new_worker(self) -> bool:
        return bool(frozenset(self.pids()[1:]) - self._workers)

    def drained(self) -> bool:
        """Whether all workers with an older configuration are gone, and with them their last request."""
        return not self._workers & frozenset(self.pids())
