"""The Python of the service, which may be another one than tenfold's own, and what is run with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from tenfold.errors import SettingsError
from tenfold.settings import Settings

_LAUNCH = Path(__file__).with_name("launch.py")


def service_python(settings: Settings) -> Path:
    """Return ``[service] python``: an interpreter, or the one in an environment's folder; else tenfold's own.

    Raises:
        SettingsError: there is no such interpreter.
    """
    named = settings.service.python
    if not named:
        return Path(sys.executable)
    path = settings.root / Path(named).expanduser()
    if path.is_dir():
        path = path / "bin" / "python"
    path = path.absolute()  # an environment's link to its interpreter is not followed
    if not os.access(path, os.X_OK):
        raise SettingsError(
            f"service.python: there is no Python at {path}; "
            "create the service's environment, or correct the path"
        )
    return path


def service_command(python: Path, module: str, *arguments: str) -> list[str]:
    """Return the command that runs ``tenfold.stack.<module>`` with the service's Python."""
    return [str(python), str(_LAUNCH), module, *arguments]


def with_scripts_on_path(environment: Mapping[str, str], python: Path) -> dict[str, str]:
    """Return the environment in which a command line finds the programs beside ``python`` first."""
    path = os.pathsep.join([str(python.parent), environment.get("PATH", os.defpath)])
    return {**environment, "PATH": path}


def lent_granian() -> str:
    """Return what :func:`tenfold.stack.app_servers.lend_granian` takes: for which Python, and from where."""
    found = find_spec("granian")
    if found is None or found.origin is None:
        return ""
    return f"{sys.implementation.cache_tag}:{Path(found.origin).parents[1]}"
