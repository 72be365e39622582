"""``tenfold size``: what so many users need, and what breaks first on the way."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.console import to_json
from tenfold.cli.instance import Capacity, find_instance
from tenfold.settings import load

if TYPE_CHECKING:
    from tenfold.settings import Settings
    from tenfold.sizing.size import Measured


def size(
    *,
    users: Annotated[int, typer.Option(min=1, max=1_000_000_000, help="Users of the service.")] = 1_000_000,
    capacity: Capacity = "",
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON only.")] = False,
) -> int:
    """Say what a number of users needs, each number with its formula, and what is used up on the way.

    What users do and what things cost are keys of [sizing]; what is neither set nor measured is assumed, and
    marked so.
    """
    from tenfold.sizing.size import limits_on_the_way, size

    known = load(settings)
    measured = _measured(known, capacity)
    numbers = size(users, known.sizing, measured)
    limits = limits_on_the_way(known.sizing, measured, to=max(users, 100))
    if as_json:
        facts = {"users": users, "numbers": [asdict(one) for one in numbers]}
        typer.echo(to_json({**facts, "limits": [asdict(one) for one in limits]}))
        return 0
    typer.echo(f"{users:,} users\n")
    for one in numbers:
        mark = "?" if one.basis == "assumed" else " "
        typer.echo(f"{mark} {one.name:<17}{one.shown:>12}  {one.formula}")
    if limits:
        typer.echo("\nOn the way from 100 users:")
    for limit in limits:
        typer.echo(f"{limit.users:>14,}  {limit.what}\n{'':>14}  → {limit.remedy}")
    if any(one.basis == "assumed" for one in numbers):
        typer.echo("\n? assumed: set it in [sizing], or measure")
    return 0


def _measured(settings: Settings, capacity: str) -> Measured:
    from tenfold.autoscaling.policies import target_rate
    from tenfold.sizing.size import Measured

    instance = find_instance(settings, capacity)
    scaling, database = settings.autoscaling, settings.database
    scaler = scaling.scaler()
    return Measured(
        instance_rps=target_rate(scaler, instance.service),
        database_cpu_ms=instance.database_cpu_ms,
        connections=database.workers * database.engines * (database.pool_size + database.max_overflow),
        reserve=database.reserve,
        max_connections=database.max_connections,
        least=scaler.hpa.min_replicas,
        most=scaler.hpa.max_replicas,
        instance_price=scaling.price_per_hour,
        capacity="measured" if instance.is_measured else "set",
    )
