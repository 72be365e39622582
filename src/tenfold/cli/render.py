"""``tenfold render``: configuration files from tenfold.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli.console import to_json
from tenfold.errors import SettingsError
from tenfold.settings import Settings, load
from tenfold.types import File

_TARGETS = ("monitoring",)


def render(
    target: Annotated[str, typer.Argument(metavar="|".join(_TARGETS), help="What to render.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Default: print.", show_default=False),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print paths and texts as JSON only.")] = False,
) -> int:
    """Write the files that Prometheus, Alertmanager, Grafana and the OpenTelemetry Collector read.

    A second run changes nothing. With [kubernetes] name, also what the Prometheus Operator reads.
    """
    if target not in _TARGETS:
        raise SettingsError(f"no target {target[:40]!r}: write one of {', '.join(_TARGETS)}")
    from tenfold.monitoring.prometheus import detection_times

    declared = load(settings)
    files = _render_monitoring(declared)
    times = detection_times(declared.monitoring)
    if as_json:
        facts = {
            "files": {str(file.path): file.text for file in files},
            "detection_s": [{"objective": one, "alert": two, "seconds": three} for one, two, three in times],
        }
        typer.echo(to_json(facts))
    if output is not None:
        for file in files:
            said = _write(output, file)
            if not as_json:
                typer.echo(f"{said:<10} {output / file.path}")
    elif not as_json:
        typer.echo("\n".join(f"# ---- {file.path}\n{file.text}" for file in files))
    if output is not None and not as_json:
        typer.echo("\nIn a total outage these alerts fire after")
        for objective, alert, seconds in times:
            typer.echo(f"  {objective:<14}{alert:<28}{seconds:>8,.0f} s")
    return 0


def _render_monitoring(settings: Settings) -> tuple[File, ...]:
    from tenfold.monitoring.prometheus import render as render_files

    return render_files(
        settings.monitoring,
        slow_s=settings.measure.objective.slow_ms / 1000,
        name=settings.kubernetes.name,
        namespace=settings.kubernetes.namespace,
    )


def _write(folder: Path, file: File) -> str:
    """Write one file; return what became of it."""
    path = folder / file.path
    try:
        former = path.read_text() if path.exists() else None
        if former == file.text:
            return "unchanged"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {(error.strerror or 'unknown error').lower()}"
        ) from None
    return "written" if former is None else "changed"
