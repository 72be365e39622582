"""nginx: the front door of a stack with an app."""

from __future__ import annotations

import socket
from pathlib import Path

from tenfold.deploy import nginx
from tenfold.settings import Settings
from tenfold.stack.group import ProcessGroup
from tenfold.stack.place import Place
from tenfold.stack.ports import HOST, claimed
from tenfold.stack.programs import NGINX, Program, find_nginx, required
from tenfold.stack.server import PLAIN_ENVIRONMENT, LocalServer


def servers(settings: Settings, place: Place) -> list[LocalServer]:
    """One nginx, if the settings want it and there is an app to stand in front of."""
    if not settings.stack.nginx or not settings.service.app:
        return []
    program = required(find_nginx, NGINX, settings)
    port = claimed(settings.stack.port)
    return [Nginx(place, program, port=port, timeout_s=settings.stack.start_timeout_s)]


class Nginx(LocalServer):
    """The front door. As root, its master stays root and its workers do not."""

    kind = "nginx"
    needs = frozenset({"prepare", "app"})  # nobody meets a 502 because the stack is still starting

    def __init__(self, place: Place, program: Program, *, port: int, timeout_s: float) -> None:
        super().__init__(place, name="nginx", timeout_s=timeout_s, port=port)
        self.program = program

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
        return self.place.folder / "nginx" / "access.log"

    def launch(self) -> ProcessGroup:
        """Render the configuration and start."""
        folder = self.place.subfolder("nginx")
        account = self.place.account
        door = nginx.FrontDoor(
            listen=self.address,
            upstreams=tuple(peer.address for peer in self.peers if peer.kind == "app"),
            account=(account.name, account.group) if account else None,
        )
        for file in nginx.render(door):
            self.place.write(folder / file.path, file.text)
        return self.place.launch(
            self.name,
            [str(self.program.path), "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"],
            cwd=folder,
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
