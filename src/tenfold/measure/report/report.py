"""The report of a measurement: every number that is shown, in one value that is also ``report.json``.

A :class:`Report` is built by :mod:`tenfold.measure.measurement`, printed by the command line, rendered by
:mod:`tenfold.measure.report.html` and read back as a baseline. ``version`` changes when a field changes its
meaning; within a version fields are only added, so that old baselines stay readable.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tenfold.errors import SettingsError

VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Percentiles in milliseconds, of 20 requests or more."""

    p50: float
    p95: float
    p99: float | None  # None for fewer than 100 requests


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveReport:
    """The objective of the measurement."""

    slow_ms: float
    bad_share: float
    achieved_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CapacityReport:
    """The capacity interval: ``low`` and ``high`` in arrivals per second; None where an end is not known."""

    outcome: str  # "found", "at_least", "below", "undecided"
    low: float | None
    high: float | None
    confidence: float
    reason: str  # one sentence: why the search stopped, and what that means for the interval
    seconds: float
    trials: int
    requests_per_arrival: float = 1.0

    @property
    def width(self) -> float | None:
        """``(high - low) / middle``, or None without both ends."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / ((self.high + self.low) / 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointReport:
    """One endpoint near the capacity."""

    name: str
    requests: int
    failed: int
    refused: int
    corrected_ms: Latency | None  # None for fewer than 20 requests
    raw_ms: Latency | None
    statuses: dict[str, int] = field(default_factory=dict)
    mean_ms: float = 0.0  # from the scheduled arrival, of however few requests


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialReport:
    """One trial of the search."""

    purpose: str
    rate: float
    seconds: float
    offered: int
    good: int
    slow: int
    failed: int
    refused: int
    unsent: int
    in_flight_max: int
    corrected_ms: Latency | None
    raw_ms: Latency | None
    generator_cpu: float
    generator_late: float
    steal: float
    started_s: float = 0.0
    verdict: str = ""
    bad_share_low: float = 0.0  # lower 99.9 % limit of the share of bad arrivals, runs of them weighed


@dataclass(frozen=True, kw_only=True, slots=True)
class OverloadReport:
    """Goodput under overload, and the time to recover from it."""

    rate: float
    seconds: float
    goodput: float  # arrivals per second that met the objective
    kept: float  # goodput / middle of the capacity interval
    refused_share: float
    recovered_s: float | None  # None: not within watched_s
    watched_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupReport:
    """Resource use of one kind of processes near the capacity."""

    name: str
    cpu_cores_mean: float
    cpu_cores_max: float
    rss_bytes_max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesReport:
    """CPU cores used over the whole measurement, for the chart."""

    name: str
    seconds: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitReport:
    """What stops the service."""

    resource: str  # "pool", "python", "loop", "threads", "database" …; "none" when nothing explains it
    title: str
    chain: tuple[str, ...] = ()  # from the queue that was seen to the limit
    evidence: tuple[str, ...] = ()
    remedy: str = ""  # when no cause stands out


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """One part of a request's time, in milliseconds a request."""

    name: str
    low_ms: float | None  # None when no trial had a low load
    limit_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BottleneckReport:
    """One cause: what uses the limit up."""

    cause: str = ""  # "n_plus_one", "blocking_call" …
    kind: str
    title: str
    severity: str
    proof: str  # "proven" or "suspected"
    evidence: tuple[str, ...]
    where: str | None
    remedy: str
    share: float | None = None  # of the limit's use


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The results of one measurement."""

    version: int = VERSION
    tenfold: str
    service: str
    target: str
    started: str  # ISO 8601, UTC
    seconds: float
    mode: str  # "open" or "closed"
    inside: bool  # tenfold started the stack and observed it from inside
    interrupted: bool = False
    objective: ObjectiveReport
    machine: dict[str, str | int | float]
    capacity: CapacityReport | None = None
    latency_ms: Latency | None = None  # near the capacity, from the scheduled arrival
    raw_latency_ms: Latency | None = None  # near the capacity, from the moment of sending
    measured_rate: float | None = None  # arrivals per second at which these percentiles were measured
    samples: int = 0  # requests behind these percentiles
    latency_note: str = ""  # how percentiles outside the objective go with the capacity; empty for others
    error_share: float | None = None
    refused_share: float | None = None
    achieved_rps: float | None = None
    overload: OverloadReport | None = None
    generator_cpu: float | None = None
    generator_late: float | None = None
    generator_ceiling: float | None = None
    endpoints: tuple[EndpointReport, ...] = ()
    trials: tuple[TrialReport, ...] = ()
    resources: tuple[GroupReport, ...] = ()
    series: tuple[SeriesReport, ...] = ()
    limit: LimitReport | None = None
    parts: tuple[PartReport, ...] = ()
    present: tuple[str, ...] = ()  # what was proven and is not the limit
    stacks: tuple[tuple[str, float], ...] = ()  # folded: "GET /a;run;main:app;main:load", seconds
    bottlenecks: tuple[BottleneckReport, ...] = ()
    not_measured: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    errors: dict[str, int] = field(default_factory=dict)


def save(report: Report, path: Path) -> None:
    """Write ``report`` as JSON, atomically: a baseline is replaced while other processes may read it."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(report), indent=2))


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file and rename it to ``path``, with the mode of the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> Report:
    """Read a report that :func:`save` wrote.

    Raises:
        SettingsError: the file does not exist, or is not a report of this version.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except FileNotFoundError:
        stored = sorted(p.stem for p in path.parent.glob("*.json"))
        have = f"there are {', '.join(stored)}" if stored else "save one first with --save NAME"
        raise SettingsError(f"no baseline {path.stem} in {path.parent}; {have}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path} is not a tenfold report ({error}); save it again with --save") from error
    if report.version != VERSION:
        raise SettingsError(
            f"{path} is of report version {report.version}, this tenfold reads {VERSION}; save it again"
        )
    return report
