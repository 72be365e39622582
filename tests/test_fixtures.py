"""The fixture requires_server: a missing server skips a test, and fails it in CI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Requires = Callable[[Any, str], Any]


def test_present_server_is_returned(requires_server: Requires) -> None:
    assert requires_server("a server", "Redis") == "a server"


def test_missing_server_skips_outside_ci(requires_server: Requires, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Redis is missing"):
        requires_server(None, "Redis")


def test_missing_server_fails_in_ci(requires_server: Requires, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI has to have it"):
        requires_server(None, "Redis")
