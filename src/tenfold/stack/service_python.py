"""The Python of the service, which may be another one than tenfold's own, and what is run with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from tenfold.errors import SettingsError
from tenfold.settings import Settings
from tenfold.stack.environment import fill_placeholders, parse_dotenv, standard_variables
from tenfold.stack.ports import HOST

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


def describe_command(settings: Settings, answer: Path) -> list[str]:
    """Return the command that imports the app and writes its description to ``answer``."""
    service = settings.service
    factory = "1" if service.factory else "0"
    arguments = (service.app, str(settings.app_folder), factory, str(answer))
    return service_command(service_python(settings), "describe", *arguments)


def example_environment(settings: Settings) -> dict[str, str]:
    """Return an environment to import the app in while no server runs: the addresses lead nowhere."""
    placeholders = {
        **dict.fromkeys(("database_user", "database_password", "database_name", "redis_password"), "tenfold"),
        **dict.fromkeys(("database_host", "redis_host"), HOST),
        **dict.fromkeys(("database_port", "redis_port"), "1"),
        "database_url": f"postgresql://tenfold:tenfold@{HOST}:1/tenfold",
        "redis_url": f"redis://{HOST}:1/0",
        "replica_urls": "",
    }
    variables = {**os.environ, **variables_of_file(settings), **standard_variables(placeholders)}
    variables |= fill_placeholders(settings.service.environment, placeholders)
    return with_scripts_on_path(variables, service_python(settings))


def variables_of_file(settings: Settings) -> dict[str, str]:
    """Return the variables of ``[service] env_file``.

    Raises:
        SettingsError: the file cannot be read.
    """
    named = settings.service.env_file
    if named is None:
        return {}
    path = settings.root / named.expanduser()
    try:
        return parse_dotenv(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingsError(f"service.env_file: {path} cannot be read: {reason.lower()}") from None


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
