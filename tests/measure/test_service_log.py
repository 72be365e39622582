"""The last error in a service's log, beside a 500 that does not name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tenfold.errors import ScenarioError
from tenfold.measure.service_log import (
    failed_logins_with_log,
    find_error,
    last_error,
    names_failure,
)

TRACEBACK = """INFO: started
Traceback (most recent call last):
  File "/srv/venv/site-packages/starlette/routing.py", line 10, in app
    await f()
  File "/srv/shop/login.py", line 42, in login
    return users[name]
  File "/srv/venv/site-packages/sqlalchemy/engine.py", line 7, in execute
    raise
{error}
INFO: 127.0.0.1 "POST /login" 500
"""


@pytest.mark.parametrize(
    ("error", "found"),
    [
        ("KeyError: 'ada'", "KeyError: 'ada' at login.py:42"),
        ("sqlalchemy.exc.DBAPIError: gone", "sqlalchemy.exc.DBAPIError: gone at login.py:42"),
        ("shop.errors.NoSuchUserError", "shop.errors.NoSuchUserError at login.py:42"),
        ("not an exception", ""),
    ],
)
def test_last_exception_is_found_with_the_line_of_the_service(error: str, found: str) -> None:
    assert find_error(TRACEBACK.format(error=error), root=Path("/srv/shop")) == found


def test_the_last_of_several_exceptions_counts() -> None:
    text = TRACEBACK.format(error="KeyError: 'a'") + TRACEBACK.format(error="ValueError: b")
    assert find_error(text, root=Path("/srv/shop")) == "ValueError: b at login.py:42"
    assert find_error("", root=Path("/srv")) == ""


@dataclass
class Server:
    log: Path
    kind: str = "app"
    name: str = "app 1"


@dataclass
class Stack:
    servers: tuple[Server, ...]
    app_folder: Path = Path("/srv/shop")


@pytest.fixture
def stack(tmp_path: Path) -> Any:
    log = tmp_path / "app 1.log"
    log.write_text("x" * 100_000 + "\n" + TRACEBACK.format(error="KeyError: 'ada'"))
    return Stack((Server(tmp_path / "none.log"), Server(log), Server(log, kind="nginx")))


def test_login_that_fails_in_the_service_quotes_its_log(stack: Any) -> None:
    with pytest.raises(ScenarioError) as caught, failed_logins_with_log(stack):
        raise ScenarioError("POST /login answered 500; the service fails there: look at its log")
    assert "answered 500; the service fails" in str(caught.value)
    assert "; the log of app 1 says KeyError: 'ada' at login.py:42 (" in str(caught.value)


@pytest.mark.parametrize("text", ["POST /login answered 401; check the login", "RuntimeError: no account"])
def test_login_that_the_locustfile_does_wrong_quotes_no_log(stack: Any, text: str) -> None:
    with pytest.raises(ScenarioError) as caught, failed_logins_with_log(stack):
        raise ScenarioError(text)
    assert str(caught.value) == text


def test_service_without_an_error_has_nothing_to_quote(tmp_path: Path) -> None:
    assert last_error(Stack((Server(tmp_path / "none.log"),))) == ""  # type: ignore[arg-type]


def test_failures_of_the_service_are_told_from_others() -> None:
    assert names_failure({"GET / answered 500": 3})
    assert not names_failure({"GET / answered 404": 3, "GET /: ConnectionError": 1})
