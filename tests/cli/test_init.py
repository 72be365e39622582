"""tenfold init: finds the app without running it, and writes settings that load accepts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.cli import main
from tenfold.cli.adoption.discovery import App, choose_app, find_apps
from tenfold.cli.adoption.init_files import MOST_TASKS, scenario_file, settings_file
from tenfold.settings import Settings, load
from tests.support.users import folder_with_a_closed_one

FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(**files: str) -> None:
    for name, text in files.items():
        path = Path(name.replace("__init__", "+").replace("__", "/").replace("+", "__init__") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# ------------------------------------------------------------------ finding


def test_folders_of_other_users_are_passed_over() -> None:
    with folder_with_a_closed_one() as folder:
        (folder / "main.py").write_text("import closed\n" + FASTAPI)
        (folder / "theirs.py").write_text(FASTAPI)
        (folder / "theirs.py").chmod(0)
        assert [app.app for app in find_apps(folder)] == ["main:app"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (FASTAPI, "main:app"),
        ("import fastapi\napi: fastapi.FastAPI = fastapi.FastAPI(title='x')", "main:api"),
        ("import fastapi as f\napp = f.FastAPI()", "main:app"),
        ("from starlette.applications import Starlette as S\nweb = S(routes=[])", "main:web"),
        ("from litestar import Litestar\napp = Litestar([])", "main:app"),
        (
            "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()",
            "main:application",
        ),
        ("import falcon.asgi\napp = falcon.asgi.App()", "main:app"),
        (
            "from fastapi import FastAPI\ndef create_app():\n    a = FastAPI()\n    return a",
            "main:create_app",
        ),
        ("from fastapi import FastAPI\ndef web() -> FastAPI: ...", "main:web"),
        ("from fastapi import FastAPI\ndef create_app(config):\n    return FastAPI()", None),
        ("class FastAPI: ...\napp = FastAPI()", None),
        ("from fastapi import FastAPI\ndef f():\n    app = FastAPI()", None),
        ("from fastapi import FastAPI\napp = FastAPI(", None),
        ("app = None", None),
    ],
)
def test_app_is_found_by_its_class(source: str, expected: str | None) -> None:
    write(main=source)
    assert [app.app for app in find_apps(Path())] == ([expected] if expected else [])


def test_discovery_does_not_run_the_files() -> None:
    write(main=FASTAPI + "raise SystemExit('it was run')")
    assert find_apps(Path())
    assert "main" not in sys.modules


@pytest.mark.parametrize(
    ("files", "app", "folder"),
    [
        ({"shop__app": FASTAPI}, "shop.app:app", "."),
        ({"shop____init__": FASTAPI}, "shop:app", "."),
        ({"src__shop__app": FASTAPI}, "shop.app:app", "src"),
        ({"my-service__main": FASTAPI}, "main:app", "my-service"),
        (
            {"backend__main": "from models import Order\n" + FASTAPI, "backend__models": ""},
            "main:app",
            "backend",
        ),
    ],
)
def test_app_has_its_module_and_import_folder(files: dict[str, str], app: str, folder: str) -> None:
    write(**files)
    assert [(found.app, str(found.folder)) for found in find_apps(Path())] == [(app, folder)]


def test_tests_environments_and_dependencies_are_skipped() -> None:
    write(tests__main=FASTAPI, node_modules__x=FASTAPI, **{".venv__x": FASTAPI, "env__lib__x": FASTAPI})
    Path("env/pyvenv.cfg").touch()
    assert find_apps(Path()) == []


def test_routes_without_required_arguments_are_found() -> None:
    write(
        main=FASTAPI
        + """
@app.get("/items")
async def items(page: int = 1): ...
@app.get("/me", tags=["x"])
def me(request: Request): ...
@app.get("/items/{item}")
def item(item: int): ...
@app.get("/search")
def search(q: str): ...
@app.get(PATH)
def computed(): ...
@app.post("/items")
def create(): ...
@other.get("/other")
def elsewhere(): ...
"""
    )
    assert find_apps(Path()) == [App("main:app", PurePosixPath(), routes=("/items", "/me"))]


# ------------------------------------------------------------------ writing


def test_written_settings_load() -> None:
    write(src__shop__app="from fastapi import FastAPI\ndef create_app() -> FastAPI: ...")
    assert main(["init"]) == 0
    service = load(environ={}).service
    assert (service.app, service.factory, service.folder) == ("shop.app:create_app", True, Path("src"))


def test_settings_file_has_every_key_with_its_default() -> None:
    text = settings_file(Settings, {}).text
    assert load_text(text) == Settings(root=Path.cwd())
    written = load_text(uncommented(text))
    shown = re.findall(r"for example\n# (\w+) =", text)
    for table in (
        "stack",
        "measure",
        "database",
        "balancing",
        "edge",
        "tasks",
        "autoscaling",
        "kubernetes",
        "monitoring",
        "sharding",
        "sizing",
        "aws",
        "verify",
    ):
        for name, value in getattr(written, table):
            if name not in shown:
                assert value == getattr(getattr(Settings(), table), name), name
    servers = {"postgresql_bin", "redis_server", "nginx_binary"}
    users = {"user", "password", "other_user", "other_password"}
    requests = {"login", "logout", "whoami", "session_write", "session_read", "write", "read", "cached"}
    requests |= {"task", "task_status", "metrics", "pages", "rules"}
    service = {"app", "env_file", "environment", "prepare", "python", "working_folder"}
    kubernetes = {"name", "image", "queues", "prometheus", "regions"}
    monitoring = {"runbooks"}
    aws = {"group", "launch_template", "subnets", "target_groups", "request_label", "tags"}
    assert set(shown) == {
        *service,
        *servers,
        *monitoring,
        "server_names",
        "cookie",
        *users,
        *requests,
        *kubernetes,
        *aws,
        "url",
    }


def uncommented(text: str) -> str:
    return re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)


def load_text(text: str) -> Settings:
    Path("tenfold.toml").write_text(text)
    return load(environ={})


def test_the_control_settings_file_names_every_key_of_the_models() -> None:
    tables = tomllib.loads(uncommented(settings_file(Settings, {}).text))
    tables_of_patterns = {
        "database",
        "balancing",
        "edge",
        "sharding",
        "tasks",
        "autoscaling",
        "kubernetes",
        "monitoring",
        "sizing",
        "aws",
    }
    assert tables.keys() == {"service", "stack", "measure", *tables_of_patterns, "verify"}
    assert tables["stack"].keys() == set(Settings().stack.model_dump())
    assert tables["measure"].keys() == set(Settings().measure.model_dump())
    assert tables["database"].keys() == set(Settings().database.model_dump())
    assert tables["balancing"].keys() == set(Settings().balancing.model_dump())
    assert tables["edge"].keys() == set(Settings().edge.model_dump())
    assert tables["monitoring"].keys() == set(Settings().monitoring.model_dump())
    assert tables["sharding"].keys() == set(Settings().sharding.model_dump())
    assert tables["tasks"].keys() == set(Settings().tasks.model_dump())
    assert tables["autoscaling"].keys() == set(Settings().autoscaling.model_dump())
    assert tables["kubernetes"].keys() == set(Settings().kubernetes.model_dump())
    assert tables["sizing"].keys() == set(Settings().sizing.model_dump())
    assert tables["aws"].keys() == set(Settings().aws.model_dump())
    assert tables["verify"].keys() == set(Settings().verify.model_dump())


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_settings_file(value: str) -> None:
    text = settings_file(Settings, {"service": {"prepare": value}}).text
    assert tomllib.loads(text)["service"] == {"prepare": value}


@given(st.lists(st.from_regex(r"/[ -~é]{0,12}", fullmatch=True)))
def test_scenario_has_a_task_for_each_path(routes: list[str]) -> None:
    tree = ast.parse(scenario_file(PurePosixPath("locustfile.py"), routes).text)
    (visitor,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    names = [node.name for node in visitor.body if isinstance(node, ast.FunctionDef)]
    wanted = list(dict.fromkeys(routes))[:MOST_TASKS] or ["/"]
    assert len(names) == len(set(names)) == len(wanted)
    asked = [node.value for node in ast.walk(visitor) if isinstance(node, ast.Constant)]
    assert set(wanted) <= set(asked)


def test_locust_loads_the_scenario() -> None:
    text = scenario_file(PurePosixPath("locustfile.py"), ["/tasks", "/class", "/api/orders"]).text
    Path("locustfile.py").write_text(text)
    told = subprocess.run(
        [sys.executable, "-m", "locust", "--list", "-f", "locustfile.py"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    assert "Visitor" in told.stdout


def test_existing_files_are_kept_without_force(capsys: pytest.CaptureFixture[str]) -> None:
    write(main=FASTAPI, locustfile="mine")
    Path("tenfold.toml").write_text("# mine")
    assert main(["init"]) == 2
    assert capsys.readouterr().err == (
        "tenfold: tenfold.toml exists already; replace it with: tenfold init --force\n"
    )
    assert Path("tenfold.toml").read_text() == "# mine"
    assert main(["init", "--force"]) == 0
    assert load(environ={}).service.app == "main:app"
    assert Path("locustfile.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("files", "arguments", "sentence"),
    [
        ({}, [], "tenfold: no app was found below this folder; name it: tenfold init --app main:app\n"),
        (
            {"a": FASTAPI, "b": FASTAPI},
            [],
            "tenfold: 2 apps were found (a:app, b:app); name one: tenfold init --app a:app\n",
        ),
        (
            {},
            ["--app", "main.py"],
            'tenfold: --app main.py is not an app; it has the form "package.module:attribute"\n',
        ),
    ],
)
def test_ambiguous_or_missing_app_writes_nothing(
    files: dict[str, str], arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(**files)
    assert main(["init", *arguments]) == 2
    assert capsys.readouterr().err == sentence
    assert not Path("tenfold.toml").exists()


def test_unwritable_file_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    write(main=FASTAPI)
    Path("tenfold.toml").mkdir()
    assert main(["init", "--force"]) == 2
    assert capsys.readouterr().err == "tenfold: tenfold.toml cannot be written: is a directory\n"


def test_named_app_is_used_unchanged() -> None:
    write(src__b=FASTAPI, a=FASTAPI)
    assert main(["init", "--app", "b:app"]) == 0
    assert load(environ={}).service.folder == Path("src")
    assert main(["init", "--app", "not.found:yet", "--force"]) == 1
    assert load(environ={}).service.app == "not.found:yet"


@pytest.mark.parametrize(
    ("files", "app", "folder"),
    [
        # imported as app, by relative imports and by absolute ones
        (
            {
                "backend__app____init__": "",
                "backend__app__main": "from .core import x\n" + FASTAPI,
                "backend__app__core": "",
            },
            "app.main:app",
            "backend",
        ),
        (
            {"backend__app__main": "from app.core import x\n" + FASTAPI, "backend__app__core": ""},
            "app.main:app",
            "backend",
        ),
        ({"src__main": "from src.routes import x\n" + FASTAPI, "src__routes": ""}, "src.main:app", "."),
        ({"src__main": "from routes import x\n" + FASTAPI, "src__routes": ""}, "main:app", "src"),
        # the one that mounts the other
        (
            {
                "main": "from admin import admin\n" + FASTAPI + "app.mount('/admin', admin)\n",
                "admin": FASTAPI.replace("app =", "admin ="),
            },
            "main:app",
            ".",
        ),
        # what a factory returned
        (
            {
                "wsgi": "from shop import create_app\napp = create_app('production')\n",
                "shop": "import flask\ndef create_app(kind):\n    return flask.Flask(__name__)\n",
            },
            "wsgi:app",
            ".",
        ),
    ],
)
def test_app_is_found_as_its_code_imports_it(files: dict[str, str], app: str, folder: str) -> None:
    write(**files)
    found = choose_app(find_apps(Path()), "")
    assert found is not None
    assert (found.app, str(found.folder)) == (app, folder)


def test_django_is_served_by_wsgi_unless_its_deployment_says_otherwise() -> None:
    write(
        shop__wsgi="from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()",
        shop__asgi="from django.core.asgi import get_asgi_application\napplication = get_asgi_application()",
    )
    apps = find_apps(Path())
    assert [choose_app(apps, how).app for how in ("", "shop.asgi", "shop.wsgi:application")] == [
        "shop.wsgi:application",
        "shop.asgi:application",
        "shop.wsgi:application",
    ]
    assert choose_app([App("a:app", PurePosixPath()), App("b:app", PurePosixPath())], "") is None


def test_app_that_does_not_load_is_written_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    write(main="import os\nos.environ['SHOP_KEY']\n" + FASTAPI)
    assert main(["init"]) == 1
    said = capsys.readouterr()
    assert "the app lacks SHOP_KEY: set it in [service.environment]" in said.err
    assert "Traceback" not in said.err
    assert load(environ={}).service.app == "main:app"
