"""The workers of the Celery app that ``[tasks] app`` names: one for each of its queues."""

from __future__ import annotations

import re
from importlib.util import find_spec

from tenfold.errors import DependencyError
from tenfold.settings import Settings
from tenfold.stack import import_string
from tenfold.stack.processes import ProcessGroup
from tenfold.stack.server import LocalServer
from tenfold.stack.service_python import service_command, service_python
from tenfold.stack.workdir import WorkDir


def create_servers(settings: Settings, workdir: WorkDir) -> list[LocalServer]:
    """Create the workers; none when the settings name no Celery app."""
    if not settings.tasks.app:
        return []
    if not settings.service.python:
        if find_spec("celery") is None:
            raise DependencyError("Celery is not installed: pip install 'tenfold[tasks]'")
        import_string.check(settings.tasks.app, settings.app_folder, key="tasks.app")
    return [Workers(workdir, settings)]


class Workers(LocalServer):
    """All workers of an app, under one process that starts them."""

    kind = "workers"
    needs = frozenset({"prepare"})
    grace_s = 3.0  # what runs longer is killed; the ledger has it

    def __init__(self, workdir: WorkDir, settings: Settings) -> None:
        super().__init__(workdir, name="workers", timeout_s=settings.stack.start_timeout_s)
        self._target, self._folder = settings.tasks.app, settings.app_folder
        self._working_folder, self._python = settings.working_folder, service_python(settings)
        self._log_start = 0

    @property
    def url(self) -> str:
        """They listen nowhere; what they run instead."""
        return self._target

    @property
    def about(self) -> str:
        """Their number, and Celery."""
        wanted, _ = self._count()
        return f"Celery, {wanted} worker{'' if wanted == 1 else 's'}"

    def launch(self) -> ProcessGroup:
        """Start them in the working folder."""
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        return self.workdir.launch(
            self.name,
            service_command(self._python, "worker_process", self._target, str(self._folder)),
            cwd=self._working_folder,
            environment={**self.app_environment, "PYTHONUNBUFFERED": "1"},
            stop_signal=self.stop_signal,
        )

    def is_ready(self) -> bool:
        """Return whether each of them has said so in the log."""
        wanted, ready = self._count()
        return 0 < wanted <= ready

    def _count(self) -> tuple[int, int]:
        """Return the number of workers that were started, and of those that are ready."""
        try:
            said = self.log.read_bytes()[self._log_start :].decode(errors="replace")
        except OSError:
            return 0, 0
        announced = re.search(r"^(\d+) workers$", said, re.MULTILINE)
        return int(announced[1]) if announced else 0, len(re.findall(r"\S+@\S+ ready\.$", said, re.MULTILINE))
