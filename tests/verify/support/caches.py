"""Real stacks with a Redis, for the checks of caches."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.settings.verify import VerifySettings
from tenfold.stack import Stack

SERVICES = Path(__file__).parents[1] / "services"
_shared = ExitStack()
_running: list[Stack] = []


def declared(app: str) -> Settings:
    """Settings of one of the services in ``cached.py``."""
    return Settings(
        root=SERVICES,
        service=ServiceSettings(app=f"cached:{app}", factory=True, folder=Path(), ready_path="/popular"),
        stack=StackSettings(database=False, nginx=False),
        verify=VerifySettings(
            login="POST /login",
            user="alice",
            password="x",
            other_user="bob",
            other_password="x",
            whoami="GET /me",
            cached="GET /popular",
        ),
    )


def naive(folder: Path, ending: ExitStack) -> tuple[Stack, Settings]:
    """The naive service; one stack for all cases, until :func:`stop`."""
    settings = declared("naive")
    if not _running:
        _running.append(_shared.enter_context(Stack(settings)))
    return _running[0], settings


def stop() -> None:
    """Stop the stack that :func:`naive` has started."""
    _running.clear()
    _shared.close()
