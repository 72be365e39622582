"""``tenfold doctor``: which programs are there, where from, what each is for, and how to get the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli import tools
from tenfold.cli.console import as_json, columns, console
from tenfold.cli.machine import Machine, look
from tenfold.cli.tools import Sighting, Tool
from tenfold.errors import SettingsError, TenfoldError
from tenfold.types import Finding, Verdict

if TYPE_CHECKING:
    from tenfold.settings import Settings


_TITLES = {
    "server": "Servers of the stack",
    "library": "Python libraries",
    "load": "Load tools",
    "containers": "Containers and Kubernetes",
    "prometheus": "Prometheus",
    "database": "Database",
    "edge": "Browser and edge functions",
}


def doctor(
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In place of ./tenfold.toml.", show_default=False)
    ] = None,
    as_json_: Annotated[
        bool, typer.Option("--json", help="The same facts as JSON, and nothing else.")
    ] = False,
) -> int:
    """Say which tools and servers are here, and how to get the others.

    Exits with 0 when everything that tenfold.toml needs is there, with 1 when something is missing.
    """
    from tenfold.settings import load

    declared = load(settings)
    found = examine(declared)
    connections = add_up(declared)
    manager = tools.packager()
    missing = [sighting for sighting in found if sighting.required and not sighting.found]
    machine = look()
    if as_json_:
        typer.echo(as_json(_facts(found, machine, manager) | {"connections": asdict(connections)}))
    else:
        _show(found, machine, manager, connections)
    return 1 if missing or connections.verdict is Verdict.FAIL else 0


def add_up(settings: Settings) -> Finding:
    """Whether the database has room for every pool of the fleet; asks the server that database.url names."""
    from tenfold.database.pools import budget

    database = settings.database
    try:
        limits = budget.query_limits_at(database.url) if database.url else database.limits
    except TenfoldError as error:
        return Finding(budget.CHECK, str(error), Verdict.FAIL)
    return budget.check_budget(database.fleet, limits)


def examine(settings: Settings) -> list[Sighting]:
    """Looks for everything; required is what these settings cannot do without."""
    wanted = {"granian", "locust", "psutil"}
    others = tools.look_for([*tools.LIBRARIES, *tools.TOOLS])
    return [*_servers(settings), *(replace(tool, required=tool.tool.name in wanted) for tool in others)]


def _servers(settings: Settings) -> list[Sighting]:
    from tenfold.stack import programs

    stack = settings.stack
    return [
        _server(tools.POSTGRESQL, programs.find_postgresql, settings, stack.database),
        _server(tools.REDIS, programs.find_redis, settings, stack.redis),
        _server(tools.NGINX, programs.find_nginx, settings, stack.nginx),
    ]


def _server(tool: Tool, find: Callable[[Settings], Any], settings: Settings, required: bool) -> Sighting:
    try:
        program = find(settings)
    except SettingsError as error:  # the settings name a program that is not there
        return Sighting(tool, False, required=required, source=str(error))
    if program is None:
        return Sighting(tool, False, required=required)
    return Sighting(tool, True, required, program.version, program.source, str(program.path))


# ------------------------------------------------------------------ what is printed


def _help(sighting: Sighting, manager: tools.Packager | None) -> str:
    if sighting.found:
        return sighting.source
    if sighting.tool.group == "server":
        return sighting.source or tools.server_remedy(sighting.tool, manager)
    return tools.remedy(sighting.tool, manager)


def _mark(sighting: Sighting) -> Verdict:
    if sighting.found:
        return Verdict.PASS
    return Verdict.FAIL if sighting.required else Verdict.SKIP


def _show(
    found: Sequence[Sighting], machine: Machine, manager: tools.Packager | None, connections: Finding
) -> None:
    screen = console()
    for group, title in _TITLES.items():
        rows = [sighting for sighting in found if sighting.tool.group == group]
        if not rows:
            continue
        screen.print(title, style="bold")
        cells = [(row.tool.name, row.version, row.tool.purpose, _help(row, manager)) for row in rows]
        screen.print(columns(cells, marks=[_mark(row) for row in rows], widths=(10, 7, 0, 0)))
    screen.print("Connections to the database", style="bold")
    told = "; ".join(filter(None, (connections.claim, connections.remedy)))
    screen.print(columns([(told,)], marks=[connections.verdict], widths=(0,)))
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
    _sum_up(found, connections, screen.print)


def _sum_up(found: Sequence[Sighting], connections: Finding, say: Callable[[str], None]) -> None:
    missing = [sighting.tool.name for sighting in found if sighting.required and not sighting.found]
    if connections.verdict is Verdict.FAIL:
        missing.append("connections to the database")
    say("")
    say(
        f"✘ Missing for this tenfold.toml: {', '.join(missing)}" if missing else "✔ Everything needed is here"
    )


def _facts(found: Sequence[Sighting], machine: Machine, manager: tools.Packager | None) -> dict[str, Any]:
    return {
        "ok": all(sighting.found for sighting in found if sighting.required),
        "tools": [
            {
                "name": sighting.tool.name,
                "group": sighting.tool.group,
                "purpose": sighting.tool.purpose,
                "found": sighting.found,
                "required": sighting.required,
                "version": sighting.version,
                "source": sighting.source,
                "path": sighting.path,
                "remedy": "" if sighting.found else _help(sighting, manager),
            }
            for sighting in found
        ],
        "machine": asdict(machine),
        "remarks": machine.remarks(),
    }
