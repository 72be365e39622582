"""App instances: granian, one worker process each, serving the user's app with the probe around it."""

from __future__ import annotations

import http.client
import sys
from importlib.util import find_spec
from pathlib import Path

from tenfold.errors import DependencyError
from tenfold.settings import ServiceSettings, Settings
from tenfold.stack import targets
from tenfold.stack.ports import HOST, claimed
from tenfold.stack.processes import ProcessGroup
from tenfold.stack.server import LocalServer
from tenfold.stack.workdir import Place


def servers(settings: Settings, place: Place) -> list[LocalServer]:
    """The instances that the settings want; none when they name no app."""
    if not settings.service.app:
        return []
    if find_spec("granian") is None:
        raise DependencyError("granian is not installed: pip install 'tenfold[stack]'")
    folder = app_folder(settings)
    targets.check(settings.service.app, folder, key="service.app")
    count, wanted = settings.stack.instances, settings.stack
    front = 0 if wanted.nginx else wanted.port
    return [
        Instance(
            place,
            settings.service,
            name=f"app {number}" if count > 1 else "app",
            folder=folder,
            timeout_s=wanted.start_timeout_s,
            port=claimed(front) if number == 1 else 0,
        )
        for number in range(1, count + 1)
    ]


def app_folder(settings: Settings) -> Path:
    """The folder that the app is imported from."""
    return (settings.root / settings.service.folder.expanduser()).resolve()


class Instance(LocalServer):
    """One app instance.

    granian's main process ends when its worker does; the worker lives on when only the main process is
    killed, which is why :meth:`pids` goes by sessions.
    """

    kind = "app"
    needs = frozenset({"prepare"})

    def __init__(
        self,
        place: Place,
        service: ServiceSettings,
        *,
        name: str,
        folder: Path,
        timeout_s: float,
        port: int = 0,
    ) -> None:
        super().__init__(place, name=name, timeout_s=timeout_s, port=port)
        self._service = service
        self._folder = folder
        self._answered: int | None = None

    @property
    def url(self) -> str:
        """The instance itself, past nginx."""
        return f"http://{self.address}"

    @property
    def about(self) -> str:
        """The app server."""
        return "granian"

    def launch(self) -> ProcessGroup:
        """Start granian in the app's folder."""
        return self.place.launch(
            self.name,
            [sys.executable, "-P", "-m", "tenfold.stack.app_process", HOST, str(self.port)],
            cwd=self._folder,
            environment={**self.app_environment, **self._orders()},
            number=self.stop_signal,
        )

    def _orders(self) -> dict[str, str]:
        """For :mod:`tenfold.stack.app_process`."""
        return {
            "_TENFOLD_APP": self._service.app,
            "_TENFOLD_FACTORY": "1" if self._service.factory else "0",
            "_TENFOLD_FOLDER": str(self._folder),
            "_TENFOLD_PROBE": str(self.place.probe_address),
            "_TENFOLD_INSTANCE": self.name,
            "PYTHONUNBUFFERED": "1",
        }

    def ready(self) -> bool:
        """Whether the ready path answers 2xx, or 404: the app has no such page."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", self._service.ready_path, headers={"Host": self.address})
            self._answered = connection.getresponse().status
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()
        return 200 <= self._answered < 300 or self._answered == 404

    def excuse(self) -> str:
        """What the ready path answered last."""
        if self._answered is None:
            return ": it does not answer"
        path = self._service.ready_path
        return f": GET {path} answers {self._answered}, expected 2xx (see [service] ready_path)"
