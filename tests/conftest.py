"""What every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TypeVar

import pytest

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


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TENFOLD_STACK__… of whoever runs the tests is none of the tests' business."""
    for name in os.environ:
        if name.startswith("TENFOLD_") and "__" in name:
            monkeypatch.delenv(name)
