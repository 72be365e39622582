"""What stands around an app in its folder: its environment, its variables, how it is deployed.

Text in, settings out; only :func:`look_around` reads files.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tenfold.cli.adoption.discovery import python_files
from tenfold.stack.environment import parse_dotenv

_ENVIRONMENTS = (".venv", "venv", "env")
_MARKS = (".env", "alembic.ini", "manage.py", "pyproject.toml", "requirements.txt", "setup.py")
_DEPLOYMENTS = (
    "Procfile",
    "Dockerfile*",
    "docker-compose*.y*ml",
    "compose*.y*ml",
    "*.sh",
    "*.service",
    "Makefile",
)
# Files that are made to be copied; others (.env.production) may hold secrets.
_EXAMPLES = tuple(
    name.format(word)
    for word in ("example", "sample", "template", "dist")
    for name in (".env.{}", ".env-{}", "{}.env", ".{}.env", "env.{}")
)
_MAX_BYTES = 200_000
_SERVERS = re.compile(r"\b(uvicorn|gunicorn|hypercorn|granian|daphne|waitress-serve)\b(.*)")
_TARGET = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*)?(\(\))?")
_URL = re.compile(r"(postgres(?:ql)?(?:\+\w+)?|redis|rediss)://")
_DATABASE = r"(?:POSTGRES(?:QL)?|PG|DB|DATABASE|SQL)_?"
_VARIABLES = {
    rf"(?:{_DATABASE}|SQLALCHEMY_(?:DATABASE_)?|ASYNC_DATABASE_)(?:URL|URI|DSN)": "database_url",
    rf"{_DATABASE}(?:HOST|SERVER|HOSTNAME)": "database_host",
    rf"{_DATABASE}PORT": "database_port",
    rf"{_DATABASE}(?:USER|USERNAME)": "database_user",
    rf"{_DATABASE}(?:PASSWORD|PASS|PASSWD)": "database_password",
    r"(?:POSTGRES|POSTGRESQL|PG|DB|DATABASE|SQL)_?(?:DB|NAME|DATABASE|DBNAME)": "database_name",
    r"(?:REDIS(?:_\w+)?|CACHE|(?:CELERY_)?BROKER|CELERY_RESULT)_?(?:URL|URI|DSN|BACKEND)": "redis_url",
    r"REDIS_?(?:\w+_)?(?:HOST|SERVER|HOSTNAME)": "redis_host",
    r"REDIS_?(?:\w+_)?PORT": "redis_port",
    r"REDIS_?(?:\w+_)?(?:PASSWORD|PASS)": "redis_password",
}
_STANDARD = {"DATABASE_URL", "REDIS_URL", "DATABASE_REPLICA_URLS"}  # every app of a stack gets these


@dataclass(frozen=True, slots=True)
class Deployment:
    """How the service is started in production, as far as its files say."""

    app: str = ""  # "shop.wsgi:application"; the attribute may be missing
    server: str = ""
    threads: int = 0
    source: str = ""  # the file that says so


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was found around an app; values of ``[service]``."""

    python: str = ""
    working_folder: PurePosixPath | None = None
    env_file: PurePosixPath | None = None
    prepare: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    deployment: Deployment = Deployment()


def look_around(root: Path, folder: PurePosixPath, *, own_prefix: Path) -> Surroundings:
    """Read the files around an app.

    Args:
        root: where tenfold.toml is to be.
        folder: that the app is imported from, relative to ``root``.
        own_prefix: of the Python that runs tenfold: an environment with this prefix is no other one.
    """
    places = _places(root, folder)
    working = next((place for place in places if any((place / mark).exists() for mark in _MARKS)), places[0])
    dotenv = _read(working / ".env")
    example = next(filter(None, (_read(path) for path in _files(working, _EXAMPLES))), "")
    values = parse_dotenv(dotenv or example)
    names = {*values, *names_in_code(_sources(root / folder))}
    environment = {} if dotenv else {name: value for name, value in values.items() if value}
    environment = {name: value for name, value in environment.items() if not is_address(name, value)}
    environment |= database_variables(names, parse_dotenv(dotenv + "\n" + example))
    return Surroundings(
        python=_python(places, root, own_prefix),
        working_folder=None if working == root / folder else PurePosixPath(working.relative_to(root)),
        env_file=PurePosixPath((working / ".env").relative_to(root)) if dotenv else None,
        prepare=_prepare(working),
        environment=environment,
        deployment=find_deployment(root, folder),
    )


def is_address(name: str, value: str) -> bool:
    """Return whether a variable addresses a database; an example's addresses are not those of the stack."""
    return name in _STANDARD or _URL.match(value) is not None


def database_variables(names: Iterable[str], values: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that address PostgreSQL and Redis, with placeholders for the stack's servers.

    Where the host has a variable of its own, a URL that no file gives is composed by the app.

    >>> database_variables(["POSTGRES_SERVER", "SECRET"], {})
    {'POSTGRES_SERVER': '{database_host}'}

    Args:
        names: of every variable that the app may read.
        values: of some of them, which tell a URL's driver: ``postgresql+asyncpg://…``.
    """
    found = {}
    for name in sorted(set(names) | {name for name, value in values.items() if _URL.match(value)}):
        kind = next((kind for text, kind in _VARIABLES.items() if re.fullmatch(text, name)), "")
        url = _URL.match(values.get(name, ""))
        if url is not None:
            kind = "redis_url" if url[1].startswith("redis") else "database_url"
        driver = url[1].partition("+")[2] if url is not None else ""
        if kind == "database_url" and driver:
            found[name] = (
                f"postgresql+{driver}://{{database_user}}:{{database_password}}"
                "@{database_host}:{database_port}/{database_name}"
            )
        elif kind and name not in _STANDARD:
            found[name] = f"{{{kind}}}"
    for part in ("database", "redis"):
        if f"{{{part}_host}}" in found.values():
            found = {key: text for key, text in found.items() if text != f"{{{part}_url}}" or key in values}
    return found


def names_in_code(sources: Iterable[str]) -> set[str]:
    """Return the names that code may read from the environment.

    These are texts of capital letters, and the fields of classes whose name or base ends in ``Settings`` or
    ``Config``, in capitals.
    """
    found: set[str] = set()
    for source in sources:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"[A-Z][A-Z0-9_]{1,60}", node.value):
                    found.add(node.value)
            elif isinstance(node, ast.ClassDef) and _is_settings_class(node):
                found |= {
                    one.target.id.upper()
                    for one in node.body
                    if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
                }
    return found


def _is_settings_class(node: ast.ClassDef) -> bool:
    bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in node.bases]
    return any(name.endswith(("Settings", "Config")) for name in [node.name, *bases])


def started_by(text: str) -> Deployment:
    """Return the app server's command in a deployment file: app, server, threads."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("#") or (found := _SERVERS.search(line)) is None:
            continue
        words = _words(re.sub(r"""["',\[\]]""", " ", found[2]))
        app = next((word for word in _positional(words) if _TARGET.fullmatch(word)), "")
        if app and (":" in app or "." in app):
            server = {"waitress-serve": "waitress", "daphne": ""}.get(found[1], found[1])
            if server == "gunicorn" and "uvicorn" in found[2].lower():
                server = "uvicorn"
            threads = re.search(r"--threads[= ]+(\d+)", " ".join(words))
            return Deployment(app.removesuffix("()"), server, int(threads[1]) if threads else 0)
    return Deployment()


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def _positional(words: Sequence[str]) -> list[str]:
    """Return the words that are neither options nor, as far as can be told, an option's value."""
    found = []
    for before, word in zip(["", *words], words, strict=False):
        takes_value = before.startswith("-") and "=" not in before and ":" not in word
        if not word.startswith("-") and not takes_value:
            found.append(word)
    return found


def gunicorn_settings(text: str) -> Mapping[str, Any]:
    """Return the constants that gunicorn.conf.py assigns."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return {}
    return {
        statement.targets[0].id: statement.value.value
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
    }


def _places(root: Path, folder: PurePosixPath) -> list[Path]:
    """Return the app's folder and those around it, up to ``root``."""
    return list(dict.fromkeys([root / folder, *(root / one for one in folder.parents), root]))


def find_deployment(root: Path, folder: PurePosixPath) -> Deployment:
    """Return how the service is started, by the files in the app's folder and those around it."""
    found, places = Deployment(), _places(root, folder)
    for path in (path for place in places for path in _files(place, _DEPLOYMENTS)):
        found = started_by(_read(path))
        if found.app:
            found = Deployment(found.app, found.server, found.threads, path.name)
            break
    for place in places:
        settings = gunicorn_settings(_read(place / "gunicorn.conf.py"))
        threads, app = settings.get("threads"), settings.get("wsgi_app")
        if settings and not found.threads and isinstance(threads, int):
            app = found.app or (app if isinstance(app, str) else "")
            found = Deployment(app, found.server or "gunicorn", threads, "gunicorn.conf.py")
    return found


def _prepare(working: Path) -> str:
    """Return the command that brings the database to its schema, by what stands in the working folder."""
    if (working / "alembic.ini").exists():
        return "alembic upgrade head"
    if (working / "migrations" / "alembic.ini").exists():  # Flask-Migrate
        return "flask db upgrade"
    if (working / "manage.py").exists() and "django" in _read(working / "manage.py").lower():
        return "python manage.py migrate"
    return ""


def _python(places: Sequence[Path], root: Path, own_prefix: Path) -> str:
    for place in places:
        for name in _ENVIRONMENTS:
            environment = place / name
            if (environment / "pyvenv.cfg").exists() and environment.resolve() != own_prefix.resolve():
                return environment.relative_to(root).as_posix()
    return ""


def _sources(folder: Path) -> Iterable[str]:
    for number, path in enumerate(python_files(folder)):
        if number >= 500:
            return
        yield _read(path)


def _files(place: Path, patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(place.glob(pattern)) if path.is_file()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size < _MAX_BYTES else ""
    except OSError:
        return ""
