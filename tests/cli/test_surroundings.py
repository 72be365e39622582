"""What init reads around an app: deployment files, variables, environments."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from tenfold.cli.adoption.surroundings import (
    Deployment,
    database_variables,
    gunicorn_settings,
    look_around,
    names_in_code,
    started_by,
)
from tenfold.stack.environment import parse_dotenv


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web: gunicorn app:app --workers 2 --threads 3", Deployment("app:app", "gunicorn", 3)),
        ("gunicorn -w 4 -b :80 shop.wsgi", Deployment("shop.wsgi", "gunicorn", 0)),
        ('CMD ["uvicorn", "app.main:app", "--host", "0.0.0.0"]', Deployment("app.main:app", "uvicorn", 0)),
        ("exec gunicorn -k uvicorn.workers.UvicornWorker a.b:app", Deployment("a.b:app", "uvicorn", 0)),
        (
            "CMD gunicorn \\\n  --threads=8 \\\n  'app:create_app()'",
            Deployment("app:create_app", "gunicorn", 8),
        ),
        ("waitress-serve --port 80 shop.app:app", Deployment("shop.app:app", "waitress", 0)),
        ("# uvicorn old:app", Deployment()),
        ("RUN pip install uvicorn", Deployment()),
        ("", Deployment()),
    ],
)
def test_command_of_the_app_server_is_read(text: str, expected: Deployment) -> None:
    assert started_by(text) == expected


def test_gunicorn_settings_are_read_without_running_them() -> None:
    assert gunicorn_settings("threads = 6\nworkers = count()\nwsgi_app = 'a:app'\nraise SystemExit") == {
        "threads": 6,
        "wsgi_app": "a:app",
    }
    assert gunicorn_settings("threads = (") == {}


def test_variables_of_databases_get_placeholders() -> None:
    values = {
        "APP_DB": "postgresql+asyncpg://u:p@prod.example/shop",
        "CELERY_BROKER_URL": "redis://cache.example",
        "SECRET_KEY": "x",
        "DATABASE_URL": "postgres://prod.example/shop",
    }
    names = [*values, "POSTGRES_SERVER", "DB_USER", "PGPASSWORD", "POSTGRES_DB", "REDIS_CACHE_PORT", "DEBUG"]
    assert database_variables(names, values) == {
        "APP_DB": "postgresql+asyncpg://{database_user}:{database_password}"
        "@{database_host}:{database_port}/{database_name}",
        "CELERY_BROKER_URL": "{redis_url}",
        "POSTGRES_SERVER": "{database_host}",
        "DB_USER": "{database_user}",
        "PGPASSWORD": "{database_password}",
        "POSTGRES_DB": "{database_name}",
        "REDIS_CACHE_PORT": "{redis_port}",
    }


def test_url_that_the_app_composes_is_left_to_it() -> None:
    names = ["POSTGRES_SERVER", "POSTGRES_URI"]
    assert database_variables(names, {}) == {"POSTGRES_SERVER": "{database_host}"}
    assert database_variables(["POSTGRES_URI"], {}) == {"POSTGRES_URI": "{database_url}"}


def test_names_are_found_in_code_and_settings_classes() -> None:
    code = (
        "import os\nos.getenv('DB_HOST')\n"
        "class A(BaseSettings):\n    db_port: int\nclass B:\n    db_user: str\n"
    )
    assert {"DB_HOST", "DB_PORT"} <= names_in_code([code, "broken("])
    assert "DB_USER" not in names_in_code([code])


def test_dotenv_is_read_as_dotenv_does() -> None:
    text = "A=1\nexport B = 'x # y'\n# C=3\nD=z # why\nE=\nF=\"q\"\nno line\n2G=1\n"
    assert parse_dotenv(text) == {"A": "1", "B": "x # y", "D": "z", "E": "", "F": "q"}


def test_secrets_of_the_env_file_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "SECRET_KEY=hidden\nDATABASE_URL=postgresql+psycopg://u:p@prod.example/x\n"
    )
    found = look_around(tmp_path, PurePosixPath(), own_prefix=Path("/none"))
    assert found.env_file == PurePosixPath(".env")
    assert "hidden" not in str(found)
    assert "prod.example" not in str(found)
    assert found.environment["DATABASE_URL"].startswith("postgresql+psycopg://{database_user}")


def test_example_variables_stand_in_for_a_missing_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text("SECRET_KEY=changethis\nDATABASE_URL=postgres://u:p@localhost/x\n")
    found = look_around(tmp_path, PurePosixPath(), own_prefix=Path("/none"))
    assert (found.env_file, dict(found.environment)) == (None, {"SECRET_KEY": "changethis"})


def test_variables_of_production_are_not_taken_for_an_example(tmp_path: Path) -> None:
    (tmp_path / ".env.production").write_text("SECRET_KEY=hidden\n")
    assert "hidden" not in str(look_around(tmp_path, PurePosixPath(), own_prefix=Path("/none")))


def test_own_environment_and_working_folder_are_found(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").touch()
    (tmp_path / "src").mkdir()
    (tmp_path / "alembic.ini").touch()
    found = look_around(tmp_path, PurePosixPath("src"), own_prefix=Path("/none"))
    assert (found.python, found.working_folder, found.prepare) == (
        ".venv",
        PurePosixPath(),
        "alembic upgrade head",
    )
    own = look_around(tmp_path, PurePosixPath("src"), own_prefix=tmp_path / ".venv")
    assert own.python == ""
