"""What this machine can bear: cores, memory, files, and what of it is measurable."""

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
    """Sizes in bytes; None is what cannot be known here."""

    python: str
    system: str
    cores: float  # what this process may use: affinity and cgroup limits are in it
    memory: int | None
    open_files: int  # the soft limit of file descriptors
    temporary_free: int
    pressure: bool  # /proc/pressure, which says how long work waited for CPU, memory and disk
    root: bool

    def remarks(self) -> list[str]:
        """What will get in the way, each with the way out."""
        found = []
        if self.open_files < 4096:
            found.append(f"{self.open_files} open files are few for many users: ulimit -n 65536")
        if self.temporary_free < 2 * _GIB:
            found.append(
                f"{tempfile.gettempdir()} has {self.temporary_free / _GIB:.1f} GiB free; "
                "the stack needs 2: set TMPDIR to a larger disk"
            )
        if self.memory is not None and self.memory < 2 * _GIB:
            found.append(
                f"{self.memory / _GIB:.1f} GiB of memory are few for a whole stack: leave out replicas"
            )
        if self.cores < 2:
            found.append("one core is shared by the generator and the service: expect less than the truth")
        if not self.pressure:
            found.append("no pressure figures (/proc/pressure): waits for CPU and disk are not seen")
        return found


def look() -> Machine:
    """This machine, as this process sees it."""
    import resource

    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cores=_cores(),
        memory=_memory(),
        open_files=_limited(resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.RLIM_INFINITY),
        temporary_free=shutil.disk_usage(tempfile.gettempdir()).free,
        pressure=_readable(Path("/proc/pressure/cpu")),
        root=os.geteuid() == 0,
    )


def _limited(limit: int, infinity: int) -> int:
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
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
    try:
        return min(whole, int((_CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):  # "max", or no limit at all
        return whole


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_text())
    except OSError:
        return False
