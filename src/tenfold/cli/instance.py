"""What one instance takes: as ``--capacity`` says, else the settings, else the last measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.errors import SettingsError

if TYPE_CHECKING:
    from tenfold.autoscaling.simulation import Service
    from tenfold.settings import Settings

Capacity = Annotated[
    str,
    typer.Option(
        metavar="RATE|FILE",
        help="What one instance takes, or a report of tenfold measure. Default: .tenfold/report.json.",
        show_default=False,
    ),
]
"""The option of the commands that start from an instance."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance, and what its requests cost the database: milliseconds of CPU, 0 where it is not known."""

    service: Service
    database_cpu_ms: float = 0.0
    is_measured: bool = False


def find_instance(settings: Settings, capacity: str, *, cpu_request: int = 0) -> Instance:
    """What is known of an instance.

    Args:
        capacity: a rate, or the path of a report; empty: the settings, else ``.tenfold/report.json``.
        cpu_request: milli-cores; 0: as the settings say.

    Raises:
        SettingsError: nothing is known, or the report is about another service or has no capacity.
    """
    known, measured = settings.autoscaling, settings.root / ".tenfold" / "report.json"
    try:
        rate = float(capacity) if capacity else known.instance_rps
    except ValueError:
        return _read(settings, Path(capacity), cpu_request)
    if capacity and not (math.isfinite(rate) and rate > 0):
        raise SettingsError(f"--capacity {capacity} is not above 0")
    if rate:
        return Instance(known.service(instance_rps=rate, cpu_request=cpu_request))
    if measured.is_file():
        return _read(settings, measured, cpu_request)
    raise SettingsError(
        "it is not known what one instance takes: run tenfold measure, or write --capacity with a rate"
    )


def _read(settings: Settings, path: Path, cpu_request: int) -> Instance:
    from tenfold.measure.report import report

    if not path.is_file():
        raise SettingsError(f"no file {path}: write --capacity with a rate, or a report of tenfold measure")
    found = report.load(path)
    if settings.service.app and found.service != settings.service.app:
        raise SettingsError(
            f"{path} is about {found.service}, not {settings.service.app} as tenfold.toml: measure that"
        )
    if found.capacity is None or not found.capacity.low:
        raise SettingsError(f"{path} has no capacity: the measurement did not find one")
    instances, rate = settings.stack.instances, found.capacity.low * found.capacity.requests_per_arrival
    cores = {one.name: one.cpu_cores_mean for one in found.resources}
    service = settings.autoscaling.service(
        instance_rps=rate / instances,
        cpu=int(cores.get("app", 0.0) / instances * 1000),
        cpu_request=cpu_request,
    )
    return Instance(service, cores.get("database", 0.0) / rate * 1000, is_measured=True)
