"""Resources of this machine: cores, memory, open files, and whether pressure can be measured."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes in bytes; None where the system does not report one."""

    python: str
    system: str
    cores: float  # that this process may use, within its CPU affinity and cgroup limit
    memory: int | None
    open_files: int  # the soft limit of file descriptors
    temporary_free: int
    pressure: bool  # /proc/pressure is readable: time that tasks waited for CPU, memory and disk
    root: bool

    def remarks(self) -> list[str]:
        """Return the limits that will affect a measurement, each with a remedy."""
        found = []
        if self.open_files < 4096:
            found.append(f"a limit of {self.open_files} open files is low for many users: ulimit -n 65536")
        if self.temporary_free < 2 * _GIB:
            found.append(
                f"{tempfile.gettempdir()} has {self.temporary_free / _GIB:.1f} GiB free; "
                "the stack needs 2: set TMPDIR to a larger disk"
            )
        if self.memory is not None and self.memory < 2 * _GIB:
            found.append(
                f"{self.memory / _GIB:.1f} GiB of memory is little for a whole stack: leave out replicas"
            )
        if self.cores < 2:
            found.append("generator and service share one core: the measured capacity will be too low")
        if not self.pressure:
            found.append("no pressure figures (/proc/pressure): waits for CPU and disk are not measured")
        return found


def inspect_machine() -> Machine:
    """Return the resources of this machine that this process may use."""
    import resource

    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cores=_cores(),
        memory=_memory(),
        open_files=_limit(resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.RLIM_INFINITY),
        temporary_free=shutil.disk_usage(tempfile.gettempdir()).free,
        pressure=_is_readable(Path("/proc/pressure/cpu")),
        root=os.geteuid() == 0,
    )


def _limit(limit: int, infinity: int) -> int:
    return sys.maxsize if limit == infinity else limit


def _cores() -> float:
    count: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # "max 100000" or "150000 100000": microseconds of each period
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return count if quota == "max" else min(count, int(quota) / int(period))
    except (OSError, ValueError):
        return count


def _memory() -> int | None:
    try:
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    try:
        return min(installed, int((_CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):  # "max", or no limit at all
        return installed


def _is_readable(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False
