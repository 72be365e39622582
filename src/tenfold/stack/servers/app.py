"""App instances: an app server with one worker process each, the user's app in it, the probe around that."""

from __future__ import annotations

import http.client
import re
import time
from importlib.util import find_spec

from tenfold.errors import DependencyError
from tenfold.settings import Settings
from tenfold.stack import import_string
from tenfold.stack.logs import first_lines
from tenfold.stack.ports import HOST, require_free
from tenfold.stack.processes import ProcessGroup
from tenfold.stack.server import LocalServer
from tenfold.stack.service_python import lent_granian, service_command, service_python
from tenfold.stack.workdir import WorkDir

_SURE_S = 1.0  # of the same answer
_MAY_CHANGE = {404, 408, 423, 425, 429}


def create_servers(settings: Settings, workdir: WorkDir) -> list[LocalServer]:
    """Create the instances of ``[stack] instances``; none when the settings name no app."""
    if not settings.service.app:
        return []
    if not settings.service.python and find_spec("granian") is None:
        raise DependencyError("granian is not installed: pip install 'tenfold[stack]'")
    if not settings.service.python:  # another Python knows best what it can import
        import_string.check(settings.service.app, settings.app_folder, key="service.app")
    stack = settings.stack
    first = require_free(0 if stack.nginx else stack.port)
    names = [f"app {number}" for number in range(1, stack.instances + 1)] if stack.instances > 1 else ["app"]
    return [
        create_instance(settings, workdir, name, port=0 if number else first)
        for number, name in enumerate(names)
    ]


def create_instance(settings: Settings, workdir: WorkDir, name: str, *, port: int = 0) -> Instance:
    """Create one more instance of the app; not started."""
    return Instance(workdir, settings, name=name, port=port)


class Instance(LocalServer):
    """One app instance.

    Granian's main process ends when its worker does. The worker lives on when only the main process is
    killed; :meth:`pids` goes by sessions and so includes it.
    """

    kind = "app"
    needs = frozenset({"prepare"})

    def __init__(self, workdir: WorkDir, settings: Settings, *, name: str, port: int = 0) -> None:
        super().__init__(workdir, name=name, timeout_s=settings.stack.start_timeout_s, port=port)
        self._service = settings.service
        self._folder, self._working_folder = settings.app_folder, settings.working_folder
        self._python = service_python(settings)
        self._last_status: int | None = None
        self._last_body = ""
        self._answers_so_since = 0.0

    @property
    def url(self) -> str:
        """The address of the instance itself, past nginx."""
        return f"http://{self.address}"

    @property
    def about(self) -> str:
        """The app server that the instance has said it uses."""
        said = re.search(r"^serving by (.+)$", first_lines(self.log), re.MULTILINE)
        return said[1] if said else "granian"

    def launch(self) -> ProcessGroup:
        """Start the app server in the working folder."""
        return self.workdir.launch(
            self.name,
            service_command(self._python, "app_process", HOST, str(self.port)),
            cwd=self._working_folder,
            environment={**self.app_environment, **self._variables()},
            stop_signal=self.stop_signal,
        )

    def _variables(self) -> dict[str, str]:
        """Return the variables that :mod:`tenfold.stack.app_process` reads."""
        return {
            "_TENFOLD_APP": self._service.app,
            "_TENFOLD_FACTORY": "1" if self._service.factory else "0",
            "_TENFOLD_FOLDER": str(self._folder),
            "_TENFOLD_PROBE": str(self.workdir.probe_address),
            "_TENFOLD_INSTANCE": self.name,
            "_TENFOLD_INTERFACE": self._service.interface,
            "_TENFOLD_SERVER": self._service.server,
            "_TENFOLD_THREADS": str(self._service.threads),
            "_TENFOLD_GRANIAN": lent_granian(),
            "PYTHONUNBUFFERED": "1",
        }

    def is_ready(self) -> bool:
        """Return whether the ready path answers 2xx, or 404: the app has no such page."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", self._service.ready_path, headers={"Host": self.address})
            answer = connection.getresponse()
            self._note_answer(answer.status, answer.read(2000).decode(errors="replace"))
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()
        return 200 <= answer.status < 300 or answer.status == 404

    def is_refused(self) -> bool:
        """Return whether it has answered with the same redirect or refusal for a second."""
        status = self._last_status or 0
        may_change = not 300 <= status < 500 or status in _MAY_CHANGE
        return not may_change and time.monotonic() - self._answers_so_since > _SURE_S

    def _note_answer(self, status: int, body: str) -> None:
        if status != self._last_status:
            self._answers_so_since = time.monotonic()
        self._last_status, self._last_body = status, " ".join(re.sub(r"<[^>]*>", " ", body).split())

    def not_ready_reason(self) -> str:
        """Return the last answer of the ready path."""
        if self._last_status is None:
            return ": it does not answer"
        said = f" ({self._last_body[:160]})" if self._last_body else ""
        return (
            f": GET {self._service.ready_path} answers {self._last_status}{said}, expected 2xx; "
            "name a page that does, or one that does not exist, in [service] ready_path"
        )
