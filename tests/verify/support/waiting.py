"""Stacks of services that are limited by waiting, for the check that scales them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tenfold.autoscaling.settings import AutoscalingSettings
from tenfold.balancing.settings import BalancingSettings
from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.stack import Stack
from tests.verify.support.stacks import MEASURE, QUICK, SCENARIO

Case = Callable[[Path, ExitStack], tuple[Stack, Settings]]
SERVICES = Path(__file__).parents[1] / "services"


def start(app: str) -> Case:
    """A case of one of the services in ``waiting.py``: an instance is meant to take 30 requests/s."""

    def start(folder: Path, ending: ExitStack) -> tuple[Stack, Settings]:
        (folder / "locustfile.py").write_text(SCENARIO)
        environment = {"FIRST": str(folder / "first")}
        settings = Settings(
            root=folder,
            service=ServiceSettings(
                app=f"waiting:{app}",
                factory=True,
                folder=SERVICES,
                environment=environment,
            ),
            stack=StackSettings(database=False, redis=False),
            measure=MEASURE,
            balancing=BalancingSettings(**QUICK),
            autoscaling=AutoscalingSettings(requests_per_second=30, up_window_s=0, down_window_s=60),
        )
        return ending.enter_context(Stack(settings)), settings

    return start
