"""Real stacks with a primary and two replicas, for the checks of replicas and pools."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tenfold.database.settings import DatabaseSettings
from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.settings.verify import VerifySettings
from tenfold.stack import Stack

SERVICES = Path(__file__).parents[1] / "services"
_shared = ExitStack()
_running: list[Stack] = []


POOLS = {"pool_size": 3, "max_overflow": 2, "engines": 2}


def declared(app: str, *, read: str = "GET /notes", pools: dict[str, int] = POOLS, **verify: Any) -> Settings:
    """Settings of one of the services in ``notes.py``."""
    return Settings(
        root=SERVICES,
        service=ServiceSettings(
            app=f"notes:{app}", factory=True, folder=Path(), prepare="notes:prepare", ready_path="/notes"
        ),
        stack=StackSettings(redis=False, replicas=2, instances=2),
        database=DatabaseSettings(**pools),
        verify=VerifySettings(**{"write": "POST /notes", "read": read, **verify}),
    )


def careless(read: str = "GET /notes", **options: Any) -> Callable[[Path, ExitStack], tuple[Stack, Settings]]:
    """The careless service, read in one of its ways; one stack for all cases, until :func:`stop`."""

    def case(folder: Path, ending: ExitStack) -> tuple[Stack, Settings]:
        settings = declared("careless", read=read, **options)
        if not _running:
            _running.append(_shared.enter_context(Stack(settings)))
        return _running[0], settings

    return case


def stop() -> None:
    """Stop the stack that :func:`careless` has started."""
    _running.clear()
    _shared.close()
