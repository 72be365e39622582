"""``tenfold autoscale``: what is wrong with scalers before they run, and manifests for the service."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.console import to_json
from tenfold.cli.simulate import describe, read_text
from tenfold.errors import SettingsError
from tenfold.settings import load

if TYPE_CHECKING:
    from tenfold.settings import Settings

_ACTIONS = ("lint", "render", "preview", "apply", "destroy")


def autoscale(
    action: Annotated[str, typer.Argument(metavar="|".join(_ACTIONS), help="What to do.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...", help="Kubernetes' YAML; - is standard input.", show_default=False
        ),
    ] = None,
    *,
    kubernetes: Annotated[str, typer.Option(metavar="VERSION", help="Of the cluster.")] = "1.37",
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="destroy: do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON only.")] = False,
) -> int:
    """Look for contradictions in scalers, print manifests, keep a group on AWS.

    lint reads HorizontalPodAutoscalers, ScaledObjects, their targets and VerticalPodAutoscalers, of all files
    together, and exits with 1 when something is wrong. render prints what [kubernetes], [autoscaling] and
    [tasks] describe. preview shows what apply would change of the Auto Scaling group of [aws]; destroy
    deletes it.
    """
    from tenfold.autoscaling.lint import lint
    from tenfold.autoscaling.manifests import read_manifests

    if action not in _ACTIONS:
        raise SettingsError(f"no action {action[:40]!r}: write one of {', '.join(_ACTIONS)}")
    if action == "render":
        return _render(load(settings))
    if action in ("preview", "apply", "destroy"):
        return _on_aws(load(settings), action, yes=yes, as_json=as_json)
    if not files:
        raise SettingsError("no file is named: helm template … | tenfold autoscale lint -")
    version = re.fullmatch(r"v?1\.(\d{1,2})(?:\.\d+)?", kubernetes)
    if version is None:
        raise SettingsError(f"--kubernetes {kubernetes[:20]!r} is no version: write it as 1.34")
    manifests = read_manifests("\n---\n".join(read_text(file) for file in files))
    if not manifests.scalers and not manifests.problems:
        raise SettingsError("there is no HorizontalPodAutoscaler and no ScaledObject in what was read")
    used = load(settings).autoscaling.memory_used_percent
    problems = lint(manifests, kubernetes=(1, int(version[1])), memory_used=used)
    if as_json:
        typer.echo(to_json({"problems": [problem._asdict() for problem in problems]}))
        return 1 if problems else 0
    for scaler in manifests.scalers:
        typer.echo(describe(scaler))
    for problem in problems:
        typer.echo(fill(f"✘ {problem.place}: {problem.what}", 80, subsequent_indent="  "))
        if problem.remedy:
            typer.echo(fill(f"  → {problem.remedy}", 80, subsequent_indent="    "))
    count = len(manifests.scalers)
    if not problems:
        typer.echo(f"✔ nothing is wrong with {count} scaler{'s' if count > 1 else ''}")
    return 1 if problems else 0


def _render(settings: Settings) -> int:
    from tenfold.deploy.kubernetes import render

    files = render(
        settings.kubernetes,
        settings.autoscaling,
        ready_path=settings.service.ready_path,
        task_app=settings.tasks.app,
    )
    for file in files:
        typer.echo(file.text, nl=False)
    return 0


def _on_aws(settings: Settings, action: str, *, yes: bool, as_json: bool) -> int:
    from tenfold.autoscaling import aws

    client = aws.connect(settings.aws)
    if action == "destroy":
        group = settings.aws.group
        if not yes and not typer.confirm(f"Delete {group or 'the group'} with all its instances?", err=True):
            return 1
        typer.echo(
            f"✔ {group} is deleted" if aws.destroy(client, settings.aws) else f"there is no group {group}"
        )
        return 0
    act = aws.apply if action == "apply" else aws.preview
    changes = act(client, settings.aws, settings.autoscaling)
    if as_json:
        typer.echo(to_json({"changes": [asdict(change) for change in changes]}))
        return 0
    for change in changes:
        sign = "+" if not change.before else "-" if not change.after else "~"
        values = " → ".join(value for value in (change.before, change.after) if value)
        typer.echo(fill(f"{sign} {change.what:<24} {values}", 80, subsequent_indent=" " * 27))
    if not changes:
        typer.echo("✔ nothing differs")
    return 0
