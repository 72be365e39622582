"""One file a kind of server, each with a function ``servers(settings, place)`` that makes those wanted."""

from __future__ import annotations

import importlib
import pkgutil

from tenfold.settings import Settings
from tenfold.stack.server import LocalServer
from tenfold.stack.workdir import Place


def wanted(settings: Settings, place: Place) -> list[LocalServer]:
    """Every server that ``settings`` ask for, of every kind that has a file here, in an order to start in.

    Raises:
        SettingsError: what is asked for is impossible.
        DependencyError: a program is missing.
        StackError: a port is taken.
    """
    made: list[LocalServer] = []
    for module in pkgutil.iter_modules(__path__):
        made += importlib.import_module(f"{__name__}.{module.name}").servers(settings, place)
    kinds = {server.kind: server.needs for server in made}
    return sorted(made, key=lambda server: _depth(server.kind, kinds))


def _depth(kind: str, kinds: dict[str, frozenset[str]]) -> int:
    """How many kinds have to be started one after the other before this one."""
    return max((1 + _depth(need, kinds) for need in kinds[kind] if need in kinds), default=0)
