"""Stacks of a service with metrics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.settings.verify import VerifySettings
from tenfold.stack import Stack

Case = Callable[[Path, ExitStack], tuple[Stack, Settings]]
SERVICES = Path(__file__).parents[1] / "services"


def start(app: str) -> Case:
    """A case of one of the services in ``metered.py``."""

    def start(folder: Path, ending: ExitStack) -> tuple[Stack, Settings]:
        settings = Settings(
            root=SERVICES,
            service=ServiceSettings(app=f"metered:{app}", factory=True, folder=Path(), ready_path="/"),
            stack=StackSettings(database=False, redis=False, instances=2),
            verify=VerifySettings(metrics="GET /metrics", read="GET /"),
        )
        return ending.enter_context(Stack(settings)), settings

    return start
