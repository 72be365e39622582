"""``tenfold up``: start the stack, show its addresses, follow the logs until Ctrl-C.

A server that exits is reported with its last lines and not restarted, so that the service can be observed
without it. When nginx (or, without nginx, the last app instance) exits, the command ends.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from tenfold.cli.log_follower import LogFollower
from tenfold.cli.signals import interrupt_on_signals
from tenfold.errors import SettingsError, StackError, TenfoldError
from tenfold.redaction import mask_host
from tenfold.settings import Settings, load
from tenfold.stack import Stack
from tenfold.stack.logs import exit_text, failure_message
from tenfold.stack.ports import is_free
from tenfold.stack.server import LocalServer

DEFAULT_PORT = 8080
_TICK_S = 0.2


def up(
    app: Annotated[str | None, typer.Argument(help='the ASGI app, "package.module:attribute"')] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option("--settings", metavar="FILE", help="Default: ./tenfold.toml.", show_default=False),
    ] = None,
    instances: Annotated[int | None, typer.Option(min=1, max=64, help="app instances")] = None,
    replicas: Annotated[int | None, typer.Option(min=0, max=16, help="replicas of the primary")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="port of nginx; 0 chooses a free one")
    ] = None,
    flower: Annotated[
        bool, typer.Option("--flower", help="Flower, a page about the workers of [tasks] app")
    ] = False,
    autoscale: Annotated[
        bool, typer.Option("--autoscale", help="add and end instances as [autoscaling] says")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object when the stack is ready")
    ] = False,
) -> None:
    """Start the whole stack on this machine; Ctrl-C stops it."""
    settings = _override(load(config), app=app, instances=instances, replicas=replicas, port=port)
    if flower:
        tasks = settings.tasks.model_copy(update={"flower": True})
        settings = settings.model_copy(update={"tasks": tasks})
    if not settings.service.app:
        raise SettingsError(
            "no app is given: tenfold up package.module:app, or set app in [service] of tenfold.toml"
        )
    try:
        with (
            interrupt_on_signals(),
            _progress(quiet=as_json) as progress,
            Stack(settings, log=progress) as stack,
        ):
            progress("")
            follower = LogFollower(stack)  # before the addresses are shown: requests to them are logged
            _show(stack, as_json=as_json)
            with _autoscaling(stack, settings, quiet=as_json) if autoscale else nullcontext():
                _follow(stack, follower, quiet=as_json)
    except KeyboardInterrupt:
        if not as_json:
            typer.echo("Stopped: nothing is left running.")


def _override(
    settings: Settings, *, app: str | None, instances: int | None, replicas: int | None, port: int | None
) -> Settings:
    """Return ``settings`` with the command line's values."""
    if port is None and "port" not in settings.stack.model_fields_set:
        port = DEFAULT_PORT if is_free(DEFAULT_PORT) else 0
    given = {"instances": instances, "replicas": replicas, "port": port}
    stack = settings.stack.model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    service = settings.service.model_copy(update={"app": app}) if app else settings.service
    return settings.model_copy(update={"stack": stack, "service": service})


class _Progress:
    """The current line of progress on a terminal; silent elsewhere. An empty line ends it."""

    def __init__(self, *, quiet: bool) -> None:
        self._status = None if quiet else Console(stderr=True).status("Starting the stack")

    def start(self) -> None:
        if self._status:
            self._status.start()

    def __call__(self, line: str) -> None:
        if self._status and line:
            self._status.update(f"Starting the stack: {line}")
        elif self._status:
            self._status.stop()


@contextmanager
def _progress(*, quiet: bool) -> Iterator[_Progress]:
    progress = _Progress(quiet=quiet)
    progress.start()
    try:
        yield progress
    finally:
        progress("")


def _show(stack: Stack, *, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(facts(stack)).decode())
        return
    for name, where, more in rows(stack):
        typer.echo(f"{name:<10} {where:<28} {more}".rstrip())
    metrics = f" Metrics: {stack.url}/metrics (loopback only)" if _is_ok(f"{stack.url}/metrics") else ""
    if any(server.kind == "flower" for server in stack.servers):
        typer.echo(f"Flower's password is in {stack.environment_file}: FLOWER_URL")
    typer.echo(f"Ctrl-C stops everything.{metrics}")


def rows(stack: Stack) -> list[tuple[str, str, str]]:
    """Return name, address and details of the servers; those of one kind share a row."""
    order = {"nginx": 0, "app": 1, "primary": 2}
    kinds = sorted({server.kind for server in stack.servers}, key=lambda kind: (order.get(kind, 3), kind))
    return [
        _row(stack, [server for server in stack.servers if server.kind == kind])
        for kind in kinds
        if kind != "replica"
    ]


def _row(stack: Stack, servers: Sequence[LocalServer]) -> tuple[str, str, str]:
    first = servers[0]
    counts = {kind: sum(server.kind == kind for server in stack.servers) for kind in ("app", "replica")}
    if first.kind == "app":
        numbers = ", ".join(server.name.partition(" ")[2] for server in servers)
        pids = ", ".join(str(server.pids()[0]) for server in servers if server.pids())
        direct = "" if stack.access_log else f", {stack.url}"
        return f"app {numbers}".rstrip(), f"pid {pids}", first.about + direct
    if first.kind == "nginx":
        return first.name, first.url, f"→ {_count(counts['app'], 'instance')}"
    if first.kind == "primary" and counts["replica"]:
        behind = sum(stack.replication_lag_bytes().values())
        return (
            first.name,
            mask_host(first.url),
            f"{_count(counts['replica'], 'replica')}, {behind:,} bytes behind",
        )
    return first.name, mask_host(first.url), first.about


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def facts(stack: Stack) -> Mapping[str, Any]:
    """Return the same as data; passwords are in the file that ``environment`` names."""
    return {
        "url": stack.url,
        "environment": str(stack.environment_file),
        "access_log": str(stack.access_log) if stack.access_log else None,
        "servers": [
            {
                "kind": server.kind,
                "name": server.name,
                "url": mask_host(server.url),
                "port": server.port,
                "pids": server.pids(),
                "program": server.about,
                "log": str(server.log),
            }
            for server in stack.servers
        ],
    }


@contextmanager
def _autoscaling(stack: Stack, settings: Settings, *, quiet: bool) -> Iterator[None]:
    """Scale the instances while entered; on this machine at most four for each of its cores.

    Raises:
        SettingsError: there is no nginx, or the scaler looks at memory alone.
    """
    from tenfold.autoscaling.live import Autoscaler, Look
    from tenfold.verify.kit.instance_meter import InstanceMeter

    if stack.access_log is None:
        raise SettingsError("--autoscale needs nginx before the instances: set stack.nginx = true")
    declared, scaler = settings.autoscaling, settings.autoscaling.scaler()
    most = min(scaler.hpa.max_replicas, max(4 * (os.cpu_count() or 1), scaler.hpa.min_replicas))
    scaler = replace(scaler, hpa=replace(scaler.hpa, max_replicas=most))

    def report(what: Look | TenfoldError) -> None:
        if isinstance(what, TenfoldError):
            typer.echo(f"tenfold: {what}", err=True)
        elif not quiet:
            now, decision = what.observed.replicas, what.decision
            asked = f": {decision.metric} asked for {decision.asked}" if decision.metric else ""
            typer.echo(f"{time.strftime('%H:%M:%S')}  {now} → {decision.replicas} instances{asked}")

    meter = InstanceMeter(stack, cpu_request=declared.cpu_request)
    running = sum(server.kind == "app" for server in stack.servers)
    autoscaler = Autoscaler(scaler, meter, stack.scale, replicas=running, report=report)
    if not quiet:
        typer.echo(f"Scaling from {scaler.hpa.min_replicas} to {most} instances, a look every 15 s")
    autoscaler.start()
    try:
        yield
    finally:
        autoscaler.stop(wait_s=0.2)  # the stack, which ends next, ends what is being started


def _is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - the stack's own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _follow(stack: Stack, follower: LogFollower, *, quiet: bool) -> None:
    """Print new log lines until an interrupt.

    Raises:
        StackError: nginx, or without nginx every app instance, has exited.
    """
    reported: set[str] = set()
    while True:
        if not quiet:
            follower.print_new()
        for server in stack.ended_servers():
            if server.name not in reported:
                reported.add(server.name)
                _report(stack, server)
        time.sleep(_TICK_S)


def _report(stack: Stack, server: LocalServer) -> None:
    what = stack.redact(failure_message(f"{server.name} ended ({exit_text(server.exit_status)})", server.log))
    doors = [other for other in stack.servers if other.kind == ("nginx" if stack.access_log else "app")]
    if all(door in stack.ended_servers() for door in doors):
        raise StackError(f"the front door is gone: {what}")
    typer.echo(f"tenfold: {what}", err=True)
