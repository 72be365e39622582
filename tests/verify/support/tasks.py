"""Services with background work, for the checks of tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.settings.verify import VerifySettings
from tenfold.stack import Stack
from tenfold.tasks.settings import StackTaskSettings

Case = Callable[[Path, ExitStack], tuple[Stack, Settings]]
SERVICES = Path(__file__).parents[1] / "services"


def declared(app: str, task: str = "POST /work", rate: float = 2.0) -> Settings:
    """Settings of one of the services in ``tasked.py``."""
    is_careful = app != "careless"
    return Settings(
        root=SERVICES,
        service=ServiceSettings(
            app=f"tasked:{app}",
            factory=True,
            ready_path="/read",
            prepare="tasked:prepare" if is_careful else "",
        ),
        stack=StackSettings(nginx=False, database=is_careful, redis=is_careful),
        tasks=StackTaskSettings(app="tasked:celery" if is_careful else ""),
        verify=VerifySettings(
            task=task,
            task_rate=rate,
            metrics="GET /metrics",
            task_status="GET /tasks/{id}" if is_careful else "GET /work/{id}",
            read="GET /read",
        ),
    )


def start(*declaration: Any, **settings: Any) -> Case:
    """A case of one of the services."""

    def start(folder: Path, ending: ExitStack) -> tuple[Stack, Settings]:
        found = declared(*declaration, **settings)
        return ending.enter_context(Stack(found)), found

    return start
