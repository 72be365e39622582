"""One file for each kind of server, each with a function ``create_servers``."""

from __future__ import annotations

import importlib
import pkgutil

from tenfold.settings import Settings
from tenfold.stack.server import LocalServer
from tenfold.stack.workdir import WorkDir


def create_servers(settings: Settings, workdir: WorkDir) -> list[LocalServer]:
    """Create every server that ``settings`` ask for, of each kind that has a file here, in starting order.

    Raises:
        SettingsError: the settings ask for something impossible.
        DependencyError: a program is missing.
        StackError: a port is taken.
    """
    servers: list[LocalServer] = []
    for module in pkgutil.iter_modules(__path__):
        kind = importlib.import_module(f"{__name__}.{module.name}")
        servers += kind.create_servers(settings, workdir)
    kinds = {server.kind: server.needs for server in servers}
    return sorted(servers, key=lambda server: _depth(server.kind, kinds))


def _depth(kind: str, kinds: dict[str, frozenset[str]]) -> int:
    """Return how many kinds have to be started one after the other before this one."""
    return max((1 + _depth(need, kinds) for need in kinds[kind] if need in kinds), default=0)
