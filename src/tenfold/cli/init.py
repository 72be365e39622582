"""``tenfold init``: write tenfold.toml and a first scenario for an existing app, and try whether it loads."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.errors import SettingsError

if TYPE_CHECKING:
    from tenfold.cli.adoption.discovery import App
    from tenfold.cli.adoption.surroundings import Surroundings
    from tenfold.settings import Settings
    from tenfold.types import File

_TRY_S = 60.0


def init(
    app: Annotated[
        str, typer.Option(metavar="MODULE:ATTRIBUTE", help="The app, when several or none are found.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing tenfold.toml.")] = False,
) -> None:
    """Write tenfold.toml, and a locustfile unless there is one, for the app in this folder.

    The app is found by reading the Python files here; then it is imported once, in the service's own Python,
    to see whether it loads and to learn its routes. No server is started.
    """
    from tenfold.cli.adoption.init_files import scenario_file, settings_file
    from tenfold.settings import FILE_NAME, Settings

    root = Path()
    if (root / FILE_NAME).exists() and not force:
        raise SettingsError(f"{FILE_NAME} exists already; replace it with: tenfold init --force")
    service, routes = _service(root, app)
    stack = _stack(service)
    settings = Settings.model_validate({"root": root.resolve(), "service": service, "stack": stack})
    tried = _try(settings)
    if isinstance(tried, _Description):
        service |= _told_by(tried, settings)
        routes = tried.routes or routes
    _write(root, settings_file(Settings, {"service": service, "stack": stack}))
    scenario = PurePosixPath(Settings().measure.scenario)
    if not (root / scenario).exists():
        _write(root, scenario_file(scenario, routes))
    if isinstance(tried, str):
        typer.echo(f"tenfold: {tried}", err=True)
        typer.echo("Correct that in tenfold.toml or in the service, then: tenfold doctor, tenfold measure")
        raise typer.Exit(1)
    typer.echo(f"Loads    {tried.framework} on Python {tried.python}, {_count(routes)}")
    typer.echo("Next: tenfold doctor, then tenfold measure")


def _count(routes: tuple[str, ...]) -> str:
    if not routes:
        return "no GET without parameters: complete the scenario"
    return f"{len(routes)} GET{'' if len(routes) == 1 else 's'} without parameters, as {routes[0]}"


# ------------------------------------------------------------------ what is found by reading


def _service(root: Path, named: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the values of ``[service]``, and the app's known routes."""
    import sys

    from tenfold.cli.adoption.surroundings import look_around

    app = _find_app(root, named)
    surroundings = look_around(root, app.folder, own_prefix=Path(sys.prefix))
    service: dict[str, Any] = {"app": app.app}
    if app.factory:
        service["factory"] = True
    if app.folder != PurePosixPath():
        service["folder"] = str(app.folder)
    service |= _told_by_surroundings(root, app, surroundings)
    typer.echo(f"Found    {app.app}{' (a factory)' if app.factory else ''}{_in(app.folder)}")
    for label, key in (("Python", "python"), ("Prepare", "prepare"), ("File", "env_file")):
        if key in service:
            typer.echo(f"{label:<8} {service[key]}")
    return service, app.routes


def _stack(service: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of ``[stack]``: an app with Redis' host and no password could not sign in."""
    used = " ".join(service.get("environment", {}).values())
    cannot_sign_in = "{redis_host}" in used and "{redis_password}" not in used
    return {"redis_password": False} if cannot_sign_in else {}


def _in(folder: PurePosixPath) -> str:
    return f" in {folder}" if folder != PurePosixPath() else ""


def _find_app(root: Path, named: str) -> App:
    from pydantic import ValidationError

    from tenfold.cli.adoption.discovery import App, choose_app, find_apps
    from tenfold.cli.adoption.surroundings import find_deployment
    from tenfold.settings import ServiceSettings

    apps = find_apps(root)
    if named:
        try:
            ServiceSettings(app=named)
        except ValidationError:
            raise SettingsError(
                f'--app {named} is not an app; it has the form "package.module:attribute"'
            ) from None
        module = named.partition(":")[0].split(".")
        known = [app for app in apps if app.app == named]
        return known[0] if known else App(named, _folder_of(module, root))
    if not apps:
        raise SettingsError("no app was found below this folder; name it: tenfold init --app main:app")
    if chosen := choose_app(apps, find_deployment(root, apps[0].folder).app):
        return chosen
    names = ", ".join(app.app for app in apps[:4])
    raise SettingsError(f"{len(apps)} apps were found ({names}); name one: tenfold init --app {apps[0].app}")


def _folder_of(module: list[str], root: Path) -> PurePosixPath:
    """Return the folder in which a module's first name is found: here, in ``src``, or one level down."""
    places = [root, root / "src", *sorted(path for path in root.iterdir() if os.path.isdir(path))]
    for place in places:
        if os.path.isfile(place / f"{module[0]}.py") or os.path.isdir(place / module[0]):
            return PurePosixPath(place.relative_to(root))
    return PurePosixPath()


def _told_by_surroundings(root: Path, app: App, found: Surroundings) -> dict[str, Any]:
    service: dict[str, Any] = {}
    if found.working_folder is not None:
        service["working_folder"] = str(found.working_folder)
    if found.python:
        service["python"] = found.python
    if found.env_file is not None:
        service["env_file"] = str(found.env_file)
    if found.environment:
        service["environment"] = dict(found.environment)
    if found.prepare:
        service["prepare"] = found.prepare.replace("flask ", f"flask --app {app.app} ", 1)
    if found.deployment.threads:
        service["threads"] = found.deployment.threads
        typer.echo(f"Threads  {found.deployment.threads} ({found.deployment.source})")
    if found.deployment.server:
        service["server"] = found.deployment.server
    return service


# ------------------------------------------------------------------ what is found by importing the app


@dataclass(frozen=True, slots=True)
class _Description:
    """What the app's own Python says of it; see :mod:`tenfold.stack.describe`."""

    interface: str
    framework: str
    routes: tuple[str, ...]  # GETs that need nothing
    servers: tuple[str, ...]
    python: str


def _try(settings: Settings) -> _Description | str:
    """Import the app in the service's Python; return its description, or why it cannot be imported."""
    from tenfold.stack.logs import failure_message
    from tenfold.stack.service_python import describe_command, example_environment

    with tempfile.TemporaryDirectory(prefix="tenfold-init-") as folder:
        answer, log = Path(folder, "description.json"), Path(folder, "log")
        try:
            command = describe_command(settings, answer)
            environment = example_environment(settings)
            with log.open("wb") as stream:
                status = subprocess.run(  # noqa: S603 - the service's own Python
                    command,
                    cwd=settings.working_folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    timeout=_TRY_S,
                    check=False,
                ).returncode
        except subprocess.TimeoutExpired:
            return f"{settings.service.app} was still being imported after {_TRY_S:g} s"
        except (OSError, SettingsError) as error:
            return str(error)
        if status or not answer.exists():
            return failure_message(f"{settings.service.app} cannot be imported (exit status {status})", log)
        return _parse(json.loads(answer.read_bytes()))


def _parse(answer: Mapping[str, Any]) -> _Description:
    return _Description(
        interface=str(answer["interface"]),
        framework=str(answer["framework"]),
        routes=tuple(map(str, answer["routes"])),
        servers=tuple(map(str, answer["servers"])),
        python=str(answer["python"]),
    )


def _told_by(found: _Description, settings: Settings) -> dict[str, Any]:
    """Return the interface, and the server if it is installed."""
    service: dict[str, Any] = {"interface": found.interface}
    if settings.service.server not in {"auto", *found.servers}:
        service["server"] = "auto"
    return service


def _write(root: Path, file: File) -> None:
    try:
        (root / file.path).write_text(file.text, encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise SettingsError(f"{file.path} cannot be written: {reason}") from None
    typer.echo(f"Wrote    {file.path}")
