"""``tenfold up``: start the stack, say what runs where, follow the logs until Ctrl-C.

A server that ends meanwhile is reported with its last lines and not restarted: what a service does
without it is something to look at. When the front door is gone, so is the stack.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer
from rich.console import Console

from tenfold.cli.following import Follower
from tenfold.cli.signals import ending_signals
from tenfold.errors import SettingsError, StackError
from tenfold.settings import Settings, load
from tenfold.stack import Stack
from tenfold.stack.logs import ending, failure
from tenfold.stack.ports import is_free
from tenfold.stack.server import LocalServer

USUAL_PORT = 8080
_TICK_S = 0.2


def up(
    app: Annotated[str | None, typer.Argument(help='the ASGI app, "package.module:attribute"')] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option("--settings", metavar="FILE", help="In place of ./tenfold.toml.", show_default=False),
    ] = None,
    instances: Annotated[int | None, typer.Option(min=1, max=64, help="app instances")] = None,
    replicas: Annotated[int | None, typer.Option(min=0, max=16, help="replicas of the primary")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="the front door's port; 0 takes a free one")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object when all is ready")] = False,
) -> None:
    """Start the whole stack on this machine, and stop it with Ctrl-C."""
    settings = _changed(load(config), app=app, instances=instances, replicas=replicas, port=port)
    if not settings.service.app:
        raise SettingsError("which app? tenfold up package.module:app, or app in [service] of tenfold.toml")
    try:
        with ending_signals(), _progress(quiet=as_json) as progress, Stack(settings, log=progress) as stack:
            progress("")
            follower = Follower(stack)  # first: what comes once the addresses are known is shown
            _show(stack, as_json=as_json)
            _follow(stack, follower, quiet=as_json)
    except KeyboardInterrupt:
        if not as_json:
            typer.echo("Stopped: nothing is left running.")


def _changed(
    settings: Settings, *, app: str | None, instances: int | None, replicas: int | None, port: int | None
) -> Settings:
    """``settings`` with what the command line says instead."""
    if port is None and "port" not in settings.stack.model_fields_set:
        port = USUAL_PORT if is_free(USUAL_PORT) else 0
    said = {"instances": instances, "replicas": replicas, "port": port}
    stack = settings.stack.model_copy(
        update={name: value for name, value in said.items() if value is not None}
    )
    service = settings.service.model_copy(update={"app": app}) if app else settings.service
    return settings.model_copy(update={"stack": stack, "service": service})


class _Progress:
    """The last line of progress on a terminal; silent elsewhere. An empty line ends it."""

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
    metrics = f" Metrics: {stack.url}/metrics (loopback only)" if _answers(f"{stack.url}/metrics") else ""
    typer.echo(f"Ctrl-C stops everything.{metrics}")


def masked(url: str) -> str:
    """``url`` without the user and the password: ``postgresql://…:5433/shop``."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return f"{parts.scheme}://…:{parts.port}{parts.path if parts.path != '/0' else ''}"


def rows(stack: Stack) -> list[tuple[str, str, str]]:
    """What runs where, as lines of three columns; servers of one kind share a line."""
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
        behind = sum(stack.behind().values())
        return (
            first.name,
            masked(first.url),
            f"{_count(counts['replica'], 'replica')}, {behind:,} bytes behind",
        )
    return first.name, masked(first.url), first.about


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def facts(stack: Stack) -> Mapping[str, Any]:
    """The same as data; passwords are in the file that ``environment`` names."""
    return {
        "url": stack.url,
        "environment": str(stack.environment_file),
        "access_log": str(stack.access_log) if stack.access_log else None,
        "servers": [
            {
                "kind": server.kind,
                "name": server.name,
                "url": masked(server.url),
                "port": server.port,
                "pids": server.pids(),
                "program": server.about,
                "log": str(server.log),
            }
            for server in stack.servers
        ],
    }


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - the stack's own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _follow(stack: Stack, follower: Follower, *, quiet: bool) -> None:
    """Print new log lines until somebody ends it.

    Raises:
        StackError: the front door is gone.
    """
    reported: set[str] = set()
    while True:
        if not quiet:
            follower.print_news()
        for server in stack.ended():
            if server.name not in reported:
                reported.add(server.name)
                _report(stack, server)
        time.sleep(_TICK_S)


def _report(stack: Stack, server: LocalServer) -> None:
    what = stack.redacted(failure(f"{server.name} ended ({ending(server.exit_status)})", server.log))
    doors = [other for other in stack.servers if other.kind == ("nginx" if stack.access_log else "app")]
    if all(door in stack.ended() for door in doors):
        raise StackError(f"the front door is gone: {what}")
    typer.echo(f"tenfold: {what}", err=True)
