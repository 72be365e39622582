"""Apps in a Python of their own: without tenfold, with any app server, from 3.10 on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tenfold.errors import SettingsError, StackError
from tenfold.settings import Settings
from tenfold.stack import Stack
from tenfold.stack.import_string import missing_settings
from tenfold.stack.service_python import describe_command

WSGI = """
import sys

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{sys.prefix} {'tenfold' in sys.modules} {'pydantic' in sys.modules}".encode()]
"""
ASGI = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": STATUS, "headers": []})
        await send({"type": "http.response.body", "body": b"<p>no</p>"})
"""


def settings(root: Path, *, status: int = 200, **service: object) -> Settings:
    (root / "main.py").write_text(
        WSGI if service.get("interface") == "wsgi" else ASGI.replace("STATUS", str(status))
    )
    values = {"app": "main:app", **service}
    return Settings(root=root, service=values, stack={"database": False, "redis": False, "nginx": False})


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing in it."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    return folder


def old_python() -> str | None:
    """Return a Python 3.10, if this machine has one."""
    known: list[object] = [shutil.which("python3.10")]
    with suppress(PermissionError):  # another user's
        known += Path("~/.pyenv/versions").expanduser().glob("3.10*/bin/python3.10")
    for path in map(str, filter(None, known)):
        done = subprocess.run(
            [path, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 10))"], check=False
        )
        if done.returncode == 0:
            return path
    return None


@pytest.mark.guarantee(
    "a service is measured in its own environment", pattern="evidence", under="nothing but Python is in it"
)
def test_service_runs_in_its_own_environment(bare: Path, tmp_path: Path) -> None:
    with Stack(settings(tmp_path, python=str(bare), interface="wsgi")) as stack:
        prefix, has_probe, has_tool = httpx.get(stack.url, timeout=10).text.split()
    assert (prefix, has_probe, has_tool) == (str(bare), "True", "False")


@pytest.mark.control("a service is measured in its own environment")
def test_without_the_setting_it_runs_in_that_of_tenfold(tmp_path: Path) -> None:
    with Stack(settings(tmp_path, interface="wsgi")) as stack:
        prefix, *_ = httpx.get(stack.url, timeout=10).text.split()
    assert prefix == sys.prefix


@pytest.mark.parametrize("server", ["auto", "granian", "uvicorn", "hypercorn"])
def test_asgi_app_is_served_by(server: str, tmp_path: Path) -> None:
    with Stack(settings(tmp_path, server=server)) as stack:
        assert httpx.get(stack.url, timeout=10).status_code == 200
        assert stack.servers[-1].about == ("granian" if server == "auto" else server)


@pytest.mark.parametrize("server", ["auto", "granian", "gunicorn", "waitress"])
@pytest.mark.parametrize("interface", ["auto", "wsgi"])
def test_wsgi_app_is_served_by(server: str, interface: str, tmp_path: Path) -> None:
    chosen = settings(tmp_path, server=server, interface="wsgi", threads=3)
    chosen = chosen.model_copy(update={"service": chosen.service.model_copy(update={"interface": interface})})
    with Stack(chosen) as stack:
        assert httpx.get(stack.url, timeout=10).status_code == 200
        assert stack.servers[-1].about == f"{'granian' if server == 'auto' else server}, 3 threads"


@pytest.mark.parametrize(
    ("service", "sentence"),
    [
        ({"python": "nowhere"}, "there is no Python at"),
        (
            {"server": "gunicorn"},
            "gunicorn serves no ASGI app; set [service] server to one of granian, uvicorn",
        ),
        ({"interface": "wsgi", "server": "uvicorn"}, "uvicorn serves no WSGI app"),
        ({"env_file": ".env"}, "cannot be read: no such file or directory"),
    ],
)
def test_impossible_choice_is_one_sentence(service: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises((SettingsError, StackError)) as error, Stack(settings(tmp_path, **service)):
        pass
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_interface_is_one_sentence(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    chosen = chosen.model_copy(update={"service": chosen.service.model_copy(update={"interface": "wsgi"})})
    with pytest.raises(StackError, match=r'main:app is an ASGI app: set \[service\] interface = "asgi"'):
        Stack(chosen).start()


@pytest.mark.parametrize("status", [307, 400, 401])
def test_ready_path_that_is_refused_is_said_at_once(status: int, tmp_path: Path) -> None:
    with pytest.raises(StackError) as error:
        Stack(settings(tmp_path, status=status)).start()
    assert f"GET /health/ready answers {status} (no), expected 2xx" in str(error.value)


@pytest.mark.parametrize("app", ["wsgi", "asgi"])
def test_what_runs_inside_needs_python_3_10_and_nothing_else(app: str, tmp_path: Path) -> None:
    python = old_python()
    if python is None:
        pytest.skip("there is no Python 3.10 on this machine")
    answer = tmp_path / "answer.json"
    chosen = settings(tmp_path, python=python, **({"interface": "wsgi"} if app == "wsgi" else {}))
    subprocess.run(describe_command(chosen, answer), check=True, timeout=60)
    assert json.loads(answer.read_text())["interface"] == app
    hooks = (
        "asgi callsites measure.probe.django measure.probe.flask measure.probe.asyncpg measure.probe.psycopg"
    )
    code = "import sys, importlib; sys.path.append(sys.argv[1]); " + "; ".join(
        f"importlib.import_module('tenfold.{name}')"
        for name in (*hooks.split(), "stack.worker_process", "tasks.worker")
    )
    source = Path(__file__).parents[2] / "src"
    subprocess.run([python, "-I", "-S", "-c", code, str(source)], check=True, timeout=60)


def _error_of(code: str) -> BaseException:
    try:
        exec(code, {"os": os})
    except Exception as error:
        return error
    raise AssertionError(code)


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("os.environ['SHOP_KEY']", "SHOP_KEY"),
        ("{}['SHOP_KEY']", ""),
        ("raise RuntimeError('SHOP_KEY is not set')", "SHOP_KEY"),
        ("raise ValueError('Set the SECRET_KEY environment variable')", "SECRET_KEY"),
        ("raise RuntimeError('HTTP is broken')", ""),
        (
            "from pydantic import BaseModel\n"
            "class Settings(BaseModel):\n    shop_key: str\n    other: int\n"
            "Settings()",
            "SHOP_KEY, OTHER",
        ),
    ],
)
def test_missing_settings_are_named(code: str, names: str) -> None:
    assert missing_settings(_error_of(code)) == names
