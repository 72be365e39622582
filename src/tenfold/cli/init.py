"""``tenfold init``: write a commented tenfold.toml and a first scenario for an existing app."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.errors import SettingsError

if TYPE_CHECKING:
    from tenfold.cli.discovery import App
    from tenfold.types import File


def init(
    app: Annotated[
        str, typer.Option(metavar="MODULE:ATTRIBUTE", help="The ASGI app, when several or none are found.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing tenfold.toml.")] = False,
) -> None:
    """Write tenfold.toml, and a locustfile unless there is one, for the app in this folder.

    The app is found by reading the Python files here, without running them.
    """
    from tenfold.cli.init_files import scenario_file, settings_file
    from tenfold.settings import FILE_NAME, Settings

    root = Path()
    if (root / FILE_NAME).exists() and not force:
        raise SettingsError(f"{FILE_NAME} exists already; replace it with: tenfold init --force")
    service, routes = _service(root, app)
    _write(root, settings_file(Settings, {"service": service}))
    scenario = PurePosixPath(Settings().measure.scenario)
    if not (root / scenario).exists():
        _write(root, scenario_file(scenario, routes))
    typer.echo("Next: tenfold doctor, then tenfold measure")


def _service(root: Path, named: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the values of ``[service]``, and the app's known routes."""
    from pydantic import ValidationError

    from tenfold.cli.discovery import find_apps
    from tenfold.settings import ServiceSettings

    apps = find_apps(root)
    if named:
        try:
            ServiceSettings(app=named)
        except ValidationError:
            raise SettingsError(
                f'--app {named} is not an app; it has the form "package.module:attribute"'
            ) from None
        apps = [app for app in apps if app.app == named]
    elif not apps:
        raise SettingsError("no ASGI app was found below this folder; name it: tenfold init --app main:app")
    elif len(apps) > 1 and not _is_only_instance(apps):
        names = ", ".join(app.app for app in apps[:4])
        raise SettingsError(
            f"{len(apps)} apps were found ({names}); name one: tenfold init --app {apps[0].app}"
        )
    if not apps:
        return {"app": named}, ()
    service: dict[str, Any] = {"app": apps[0].app}
    if apps[0].factory:
        service["factory"] = True
    if apps[0].folder != PurePosixPath():
        service["folder"] = apps[0].folder
    typer.echo(f"Found  {apps[0].app}{' (a factory)' if apps[0].factory else ''}")
    return service, apps[0].routes


def _is_only_instance(apps: list[App]) -> bool:
    """True if the first app is the only one that is not a factory."""
    return not apps[0].factory and apps[1].factory


def _write(root: Path, file: File) -> None:
    try:
        (root / file.path).write_text(file.text, encoding="utf-8")
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise SettingsError(f"{file.path} cannot be written: {reason}") from None
    typer.echo(f"Wrote  {file.path}")
