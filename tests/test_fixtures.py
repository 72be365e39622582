"""A missing server skips a test here and fails it in CI."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Requires = Callable[[Any, str], Any]


def test_what_is_there_is_handed_on(requires_server: Requires) -> None:
    assert requires_server("a server", "Redis") == "a server"


def test_missing_skips_here(requires_server: Requires, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Redis is missing"):
        requires_server(None, "Redis")


def test_missing_fails_in_ci(requires_server: Requires, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI has to have it"):
        requires_server(None, "Redis")


def test_what_needs_redis_is_tested_on_valkey_and_on_redis(
    redis_program: Path, request: pytest.FixtureRequest
) -> None:
    said = subprocess.check_output([redis_program, "--version"], text=True)
    assert said.lower().startswith(f"{request.node.callspec.params['redis_program']} server")
