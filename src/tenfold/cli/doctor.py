"""``tenfold doctor``: list installed and missing tools, their purpose, and how to install them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli.console import console, to_json, verdict_table
from tenfold.cli.machine import Machine, inspect_machine
from tenfold.cli.tools import TOOLS, Tool, ToolStatus, find_tools
from tenfold.errors import SettingsError, TenfoldError
from tenfold.types import Finding, Verdict

if TYPE_CHECKING:
    from tenfold.settings import Settings
    from tenfold.stack.programs import Program

_TITLES = {
    "server": "Servers of the stack",
    "library": "Python libraries",
    "load": "Load tools",
    "containers": "Containers and Kubernetes",
    "prometheus": "Prometheus",
    "database": "Database",
}
_REQUIRED = {"granian", "locust", "psutil"}


def doctor(
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON only.")] = False,
) -> int:
    """List the tools and servers that are installed, and how to install the missing ones.

    Exits with 0 if everything that tenfold.toml needs is installed, with 1 if something is missing.
    """
    from tenfold.settings import load

    declared = load(settings)
    found = inspect_tools(declared)
    connections = check_connections(declared)
    missing = [status for status in found if status.required and not status.found]
    machine = inspect_machine()
    if as_json:
        typer.echo(to_json(_facts(found, machine) | {"connections": asdict(connections)}))
    else:
        _show(found, machine, connections)
    return 1 if missing or connections.verdict is Verdict.FAIL else 0


def check_connections(settings: Settings) -> Finding:
    """Check that the database has room for every pool of the fleet; asks the server of ``database.url``."""
    from tenfold.database.pools import budget

    database = settings.database
    try:
        limits = budget.query_limits_at(database.url) if database.url else database.limits
    except TenfoldError as error:
        return Finding(budget.CHECK, str(error), Verdict.FAIL)
    return budget.check_budget(database.fleet, limits)


def inspect_tools(settings: Settings) -> list[ToolStatus]:
    """Look for all servers and tools; ``required`` are those that these settings need."""
    others = find_tools(TOOLS)
    return [*_servers(settings), *(replace(one, required=one.tool.name in _REQUIRED) for one in others)]


def _servers(settings: Settings) -> list[ToolStatus]:
    from tenfold.stack import programs

    stack = settings.stack
    servers = (
        (programs.POSTGRESQL, "primary and replicas", programs.find_postgresql, stack.database),
        (programs.REDIS, "sessions, rate limits", programs.find_redis, stack.redis),
        (programs.NGINX, "front door", programs.find_nginx, stack.nginx),
    )
    return [
        _server(Tool(wanted.title, "server", purpose, wanted.remedy), find, settings, required)
        for wanted, purpose, find, required in servers
    ]


def _server(
    tool: Tool, find: Callable[[Settings], Program | None], settings: Settings, required: bool
) -> ToolStatus:
    try:
        program = find(settings)
    except SettingsError as error:  # the settings name a program that does not exist
        return ToolStatus(tool, False, required=required, source=str(error))
    if program is None:
        return ToolStatus(tool, False, required=required)
    tool = replace(tool, name=program.name or tool.name)  # Valkey may be found in place of Redis
    return ToolStatus(tool, True, required, program.version, program.source, str(program.path))


# ------------------------------------------------------------------ output


def _help(status: ToolStatus) -> str:
    return status.source or ("" if status.found else status.tool.remedy)


def _mark(status: ToolStatus) -> Verdict:
    if status.found:
        return Verdict.PASS
    return Verdict.FAIL if status.required else Verdict.SKIP


def _show(found: Sequence[ToolStatus], machine: Machine, connections: Finding) -> None:
    screen = console()
    for group, title in _TITLES.items():
        rows = [status for status in found if status.tool.group == group]
        if not rows:
            continue
        screen.print(title, style="bold")
        cells = [(_mark(row), (row.tool.name, row.version, row.tool.purpose, _help(row))) for row in rows]
        screen.print(verdict_table(cells, widths=(10, 7, 0, 0)))
    screen.print("Connections to the database", style="bold")
    claim = "; ".join(filter(None, (connections.claim, connections.remedy)))
    screen.print(verdict_table([(connections.verdict, (claim,))], widths=(0,)))
    screen.print("Machine", style="bold")
    memory = "unknown" if machine.memory is None else f"{machine.memory / 2**30:.1f} GiB"
    screen.print(f"  {machine.python} on {machine.system}")
    screen.print(
        f"  {machine.cores:g} cores · {memory} memory · {machine.open_files} open files · "
        f"{machine.temporary_free / 2**30:.0f} GiB temporary"
    )
    if machine.root:
        screen.print("  root: PostgreSQL runs under an unprivileged user")
    for remark in machine.remarks():
        screen.print(f"  {remark}")
    screen.print("\n" + _summary(found, connections))


def _summary(found: Sequence[ToolStatus], connections: Finding) -> str:
    missing = [status.tool.name for status in found if status.required and not status.found]
    if connections.verdict is Verdict.FAIL:
        missing.append("connections to the database")
    if missing:
        return f"✘ Missing for this tenfold.toml: {', '.join(missing)}"
    return "✔ Everything that tenfold.toml needs is here"


def _facts(found: Sequence[ToolStatus], machine: Machine) -> dict[str, Any]:
    return {
        "ok": all(status.found for status in found if status.required),
        "tools": [
            {
                "name": status.tool.name,
                "group": status.tool.group,
                "purpose": status.tool.purpose,
                "found": status.found,
                "required": status.required,
                "version": status.version,
                "source": status.source,
                "path": status.path,
                "remedy": "" if status.found else _help(status),
            }
            for status in found
        ],
        "machine": asdict(machine),
        "remarks": machine.remarks(),
    }
