"""Resource use of the servers' processes and the machine, sampled from outside, without root.

with ResourceSampler({"app": app.pids, "database": database.pids}) as sampler:
    ...
resources = sampler.series().between(t0, t1)     # time.monotonic()
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from tenfold.errors import MeasurementError
from tenfold.measure.machine import processes
from tenfold.measure.machine.processes import Process
from tenfold.measure.machine.quota import allowed_cores, throttled_us
from tenfold.measure.machine.sampling_thread import SamplingThread

SAMPLES = 20_000  # kept; nearly three hours at twice a second
FEW = 4  # samples; a shorter trial has no mean of its own
PRESSURES = ("cpu", "io", "memory")


class GroupSample(msgspec.Struct, frozen=True, kw_only=True):
    """One group of processes over one interval."""

    cpu_cores: float
    rss_bytes: int  # sum: pages that processes share, such as PostgreSQL's buffers, count in each


class MachineSample(msgspec.Struct, frozen=True, kw_only=True):
    """The whole machine over one interval. Shares are of all its cores' time, 0..1."""

    cpu: float
    iowait: float
    memory: float  # in use and not reclaimable
    cpu_pressure: float  # share of the time in which some task waited for it (PSI, "some")
    io_pressure: float
    memory_pressure: float
    throttled: float = 0.0  # share of the time in which a quota of CPU kept this control group waiting


class Sample(msgspec.Struct, frozen=True):
    """One interval; ``at`` is its end on ``time.monotonic()``."""

    at: float
    groups: dict[str, GroupSample]
    machine: MachineSample


class GroupStats(msgspec.Struct, frozen=True):
    """A group over a window."""

    mean: GroupSample
    max: GroupSample


class MachineStats(msgspec.Struct, frozen=True):
    """The machine over a window."""

    mean: MachineSample
    max: MachineSample


class Resources(msgspec.Struct, frozen=True):
    """All samples; :meth:`between` narrows them to a trial."""

    cores: int
    samples: tuple[Sample, ...]
    windows: tuple[tuple[float, float], ...] = ()  # of the trials to which it is narrowed
    not_measured: tuple[str, ...] = ()  # "pressure (PSI): …", each with its reason
    allowed: float = 0.0  # cores that affinity and quota leave; 0 where that was not read

    def between(self, start: float, end: float) -> Resources:
        """Return the samples whose intervals ended in ``[start, end]``, on ``time.monotonic()``."""
        kept = tuple(sample for sample in self.samples if start <= sample.at <= end)
        return msgspec.structs.replace(self, samples=kept)

    def during(self, windows: Sequence[tuple[float, float]]) -> Resources:
        """Return the samples of several trials, given by their starts and ends."""
        kept = tuple(one for one in self.samples if any(start <= one.at <= end for start, end in windows))
        return msgspec.structs.replace(self, samples=kept, windows=tuple(windows))

    @property
    def busiest(self) -> tuple[dict[str, float], MachineSample | None]:
        """The cores of each group and the machine, each as the mean over the trial with the most CPU use.

        A trial that fails at once is short beside the ones that confirm: a mean over all would hide it.
        """
        trials = [part for window in self.windows if len((part := self.between(*window)).samples) >= FEW]
        cores: dict[str, float] = {}
        machines = []
        for part in trials or [self]:
            for name, group in part.groups.items():
                cores[name] = max(cores.get(name, 0.0), group.mean.cpu_cores)
            machines += [part.machine.mean] if part.machine is not None else []
        return cores, max(machines, key=lambda one: one.cpu, default=None)

    @property
    def groups(self) -> dict[str, GroupStats]:
        """Mean and maximum of each group."""
        series: dict[str, list[GroupSample]] = {}
        for sample in self.samples:
            for name, group in sample.groups.items():
                series.setdefault(name, []).append(group)
        return {name: GroupStats(_mean(seen), _max(seen)) for name, seen in series.items()}

    @property
    def machine(self) -> MachineStats | None:
        """Mean and maximum of the machine; None without a sample."""
        seen = [sample.machine for sample in self.samples]
        return MachineStats(_mean(seen), _max(seen)) if seen else None


class ResourceSampler(SamplingThread):
    """Sample groups of process trees on a thread while entered.

    Args:
        groups: for each group, a callable that returns its current root pids; called at every sample.
            Descendants are included.
        interval_s: seconds between two samples.

    A callable that fails (its server is being replaced) leaves its group out of that sample.
    """

    def __init__(self, groups: Mapping[str, Callable[[], Sequence[int]]], *, interval_s: float = 0.5) -> None:
        if not 0.01 <= interval_s <= 60:
            raise MeasurementError(f"interval_s is {interval_s}; give seconds between 0.01 and 60")
        self._pids = dict(groups)
        self._interval_s = interval_s
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._not_measured: dict[str, str] = {}
        if not Path("/proc/pressure/cpu").exists():
            self._not_measured["pressure (PSI)"] = "this kernel does not report it"
        super().__init__(name="tenfold-resources")

    def series(self) -> Resources:
        """Return everything sampled so far."""
        return Resources(
            cores=psutil.cpu_count() or 1,
            allowed=allowed_cores(),
            samples=tuple(self._samples),
            not_measured=tuple(f"{what}: {why}" for what, why in sorted(self._not_measured.items())),
        )

    def _run(self) -> None:
        before = self._read_counters()
        while not self._stopping.wait(self._interval_s):
            now = self._read_counters()
            self._samples.append(
                Sample(
                    now.at,
                    {name: _group(name, before, now) for name in now.groups if name in before.groups},
                    _machine(before, now),
                )
            )
            before = now

    def _read_counters(self) -> _Counters:
        everything = processes.snapshot()
        groups = {}
        for name, pids in self._pids.items():
            try:
                groups[name] = processes.tree(everything, pids())
            except Exception as error:  # the user's callable: one that fails must not end the sampling
                self._not_measured[name] = f"its processes could not be listed ({error})"
        return _Counters(groups, set(everything))


class _Counters:
    """All counters at one moment."""

    def __init__(self, groups: dict[str, dict[int, Process]], pids: set[int]) -> None:
        self.at = time.monotonic()
        self.groups, self.pids = groups, pids
        self.cpu = psutil.cpu_times()
        self.memory = psutil.virtual_memory().percent / 100
        self.pressure = {name: _pressure_us(name) for name in PRESSURES}
        self.throttled = throttled_us()


def _group(name: str, before: _Counters, now: _Counters) -> GroupSample:
    seconds = max(now.at - before.at, 1e-6)
    old, new = before.groups[name], now.groups[name]
    return GroupSample(
        cpu_cores=processes.cpu_between(old, new, known=before.pids) / seconds,
        rss_bytes=sum(process.rss_bytes for process in new.values()),
    )


def _machine(before: _Counters, now: _Counters) -> MachineSample:
    seconds = max(now.at - before.at, 1e-6)
    spent = {name: max(value - getattr(before.cpu, name), 0.0) for name, value in now.cpu._asdict().items()}
    for inside in ("guest", "guest_nice"):  # already in user and nice
        spent.pop(inside, None)
    total = sum(spent.values()) or 1.0
    idle, iowait, steal = (spent.get(name, 0.0) / total for name in ("idle", "iowait", "steal"))
    pressure = {
        name: min(max(now.pressure[name] - before.pressure[name], 0) / 1e6 / seconds, 1.0)
        for name in PRESSURES
    }
    return MachineSample(
        cpu=max(1 - idle - iowait - steal, 0.0),
        iowait=iowait,
        memory=now.memory,
        cpu_pressure=pressure["cpu"],
        io_pressure=pressure["io"],
        memory_pressure=pressure["memory"],
        throttled=min(max(now.throttled - before.throttled, 0) / 1e6 / seconds, 1.0),
    )


def _pressure_us(name: str) -> int:
    """Return the total time in which some task waited (PSI); 0 where the kernel has no PSI."""
    try:
        found = re.search(r"some .*total=(\d+)", Path(f"/proc/pressure/{name}").read_text())
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def _mean(seen: Sequence[Any]) -> Any:
    return _combine(seen, lambda values: sum(values) / len(values))


def _max(seen: Sequence[Any]) -> Any:
    return _combine(seen, max)


def _combine(seen: Sequence[Any], combine: Callable[[list[float]], float]) -> Any:
    """Combine many samples into one, field by field; counts stay whole numbers."""
    kind = type(seen[0])
    fields = {name: [getattr(one, name) for one in seen] for name in kind.__struct_fields__}
    whole = {name: all(isinstance(value, int) for value in values) for name, values in fields.items()}
    return kind(**{n: round(combine(v)) if whole[n] else combine(v) for n, v in fields.items()})
