"""``tenfold init`` on services of the usual shapes, and the stack that its settings start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tenfold.cli import main
from tenfold.settings import load
from tenfold.stack import Stack


@pytest.mark.parametrize(
    ("shape", "service", "path"),
    [
        ("flat", {"app": "main:app", "interface": "asgi"}, "/items"),
        (
            "src_layout",
            {
                "app": "shopapi.main:app",
                "folder": Path("src"),
                "working_folder": Path(),
                "env_file": Path(".env"),
            },
            "/api/names",
        ),
        (
            "backend",
            {"app": "app.main:app", "folder": Path("backend"), "prepare": "alembic upgrade head"},
            "/api/v1/items",
        ),
        ("factory", {"app": "service.app:create_app", "factory": True}, "/pages"),
        (
            "flask_login",
            {"app": "app:app", "interface": "wsgi", "server": "gunicorn", "threads": 3},
            "/login",
        ),
        (
            "django_rest",
            {"app": "project.wsgi:application", "interface": "wsgi", "prepare": "python manage.py migrate"},
            "/api/products/",
        ),
    ],
)
def test_first_try_serves_the_first_request(
    shape: str,
    service: dict[str, Any],
    path: str,
    copy_shape: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(copy_shape(shape))
    assert main(["init"]) == 0, capsys.readouterr().err
    settings = load(environ={})
    assert {name: getattr(settings.service, name) for name in service} == service
    assert f"client.get({path!r})" in Path("locustfile.py").read_text()
    with Stack(settings) as stack:
        answer = httpx.get(stack.url + path, timeout=10)
    assert answer.status_code == 200
