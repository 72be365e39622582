"""Flower, the web page about a Celery app's workers and tasks, behind a generated password."""

from __future__ import annotations

import base64
import http.client
import os
import secrets
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec

from tenfold.errors import DependencyError, SettingsError
from tenfold.settings import Settings
from tenfold.stack.ports import HOST
from tenfold.stack.processes import ProcessGroup
from tenfold.stack.server import LocalServer
from tenfold.stack.service_python import service_python
from tenfold.stack.workdir import WorkDir

_USER = "tenfold"


def create_servers(settings: Settings, workdir: WorkDir) -> list[LocalServer]:
    """Create Flower, if the settings want it.

    Raises:
        SettingsError: they name no Celery app.
        DependencyError: Flower is not installed.
    """
    if not settings.tasks.flower:
        return []
    if not settings.tasks.app:
        raise SettingsError('Flower shows a Celery app: name it in [tasks] app, as "shop.tasks:celery"')
    if not settings.service.python and find_spec("flower") is None:
        raise DependencyError("Flower is not installed: pip install 'tenfold[flower]'")
    return [Flower(workdir, settings)]


class Flower(LocalServer):
    """Flower for the Celery app of the stack."""

    kind = "flower"
    needs = frozenset({"prepare", "workers"})

    def __init__(self, workdir: WorkDir, settings: Settings) -> None:
        super().__init__(workdir, name="flower", timeout_s=settings.stack.start_timeout_s)
        self._target, self._folder = settings.tasks.app, settings.app_folder
        self._working_folder, self._python = settings.working_folder, service_python(settings)
        self._password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        """Its page, which asks for user and password."""
        return f"http://{self.address}"

    @property
    def about(self) -> str:
        """Program and version."""
        return f"Flower {version('flower')}"

    def secrets(self) -> Sequence[str]:
        """Return the password."""
        return (self._password,)

    def variables(self) -> Mapping[str, str]:
        """Return FLOWER_URL, with user and password."""
        return {"FLOWER_URL": f"http://{_USER}:{self._password}@{self.address}"}

    def launch(self) -> ProcessGroup:
        """Start it in the working folder; no process list shows the password."""
        path = os.pathsep.join(
            [str(self._folder), *filter(None, [self.app_environment.get("PYTHONPATH", "")])]
        )
        listen = f"--address={HOST}", f"--port={self.port}"
        return self.workdir.launch(
            self.name,
            [str(self._python), "-m", "celery", "-A", self._target, "flower", *listen],
            cwd=self._working_folder,
            environment={
                **self.app_environment,
                "PYTHONPATH": path,
                "PYTHONSAFEPATH": "1",  # the working folder is no place to import from
                "FLOWER_BASIC_AUTH": f"{_USER}:{self._password}",
            },
            stop_signal=self.stop_signal,
        )

    def is_ready(self) -> bool:
        """Return whether it answers to this password: another program on the port would not."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=1)
        credentials = base64.b64encode(f"{_USER}:{self._password}".encode()).decode()
        try:
            connection.request("GET", "/", headers={"Authorization": f"Basic {credentials}"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
