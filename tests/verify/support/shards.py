"""Real stacks with two shards on two servers, for the checks of shards."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.settings.verify import VerifySettings
from tenfold.sharding.directory import Directory
from tenfold.sharding.settings import ShardingSettings
from tenfold.stack import Stack

SERVICES = Path(__file__).parents[1] / "services"
_shared = ExitStack()
_running: list[Stack] = []


def users() -> tuple[int, int]:
    """A user of either shard, also by their number modulo two."""
    directory = Directory.create(["shard1", "shard2"], ("int",))
    one = next(user for user in range(10, 1000, 2) if directory.place(user).shard == "shard1")
    other = next(user for user in range(11, 1000, 2) if directory.place(user).shard == "shard2")
    return one, other


def declared(app: str, **verify: Any) -> Settings:
    """Settings of one of the services in ``sharded.py``."""
    user, other = users()
    prepare = "sharded:prepare" if app == "careful" else "sharded:prepare_carelessly"
    known = {
        "login": "POST /login",
        "user": str(user),
        "other_user": str(other),
        "password": "-",
        "other_password": "-",
        "write": "POST /notes",
        "read": "GET /notes",
        **verify,
    }
    return Settings(
        root=SERVICES,
        service=ServiceSettings(app=f"sharded:{app}", factory=True, folder=Path(), prepare=prepare),
        stack=StackSettings(redis=False),
        sharding=ShardingSettings(shards=2, servers=2),
        verify=VerifySettings(**known),
    )


def careless(folder: Path, ending: ExitStack) -> tuple[Stack, Settings]:
    """The careless service; one stack for all cases, until :func:`stop`."""
    settings = declared("careless")
    if not _running:
        _running.append(_shared.enter_context(Stack(settings)))
    return _running[0], settings


def stop() -> None:
    """Stop the stack that :func:`careless` has started."""
    _running.clear()
    _shared.close()
