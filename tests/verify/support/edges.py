"""Services behind nginx's cache, for the checks of the edge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from tenfold.edge import Rule, public
from tenfold.edge.settings import EdgeSettings
from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.settings.verify import VerifySettings
from tenfold.stack import Stack

Case = Callable[[Path, ExitStack], tuple[Stack, Settings]]
SERVICES = Path(__file__).parents[1] / "services"


def declared(app: str, rules: Mapping[str, Rule]) -> Settings:
    """Settings of one of the services in ``edged.py``."""
    return Settings(
        root=SERVICES,
        service=ServiceSettings(app=f"edged:{app}", factory=True),
        stack=StackSettings(database=False, redis=False),
        edge=EdgeSettings(rules=rules),
        verify=VerifySettings(
            login="POST /login",
            user="alice",
            other_user="bob",
            whoami="GET /me",
            pages=("/",),
            plain_http=True,
        ),
    )


def start(app: str, rules: Mapping[str, Rule] | None = None) -> Case:
    """A case of one of the services."""

    def start(folder: Path, ending: ExitStack) -> tuple[Stack, Settings]:
        settings = declared(app, rules or {})
        return ending.enter_context(Stack(settings)), settings

    return start


EVERYTHING = {"/**": public(ttl=60)}
