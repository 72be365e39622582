"""Every process of the machine in one pass: parents, CPU time, memory, page faults.

On Linux straight from ``/proc/PID/stat``, some 15 µs a process; elsewhere through psutil, with less detail.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

LINUX = sys.platform.startswith("linux")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """One process. CPU times in seconds since it began, memory in bytes."""

    pid: int
    parent: int
    cpu_s: float
    children_cpu_s: float  # of children that ended and were waited for, and of theirs
    faults: int  # major: a page was read from disk
    resident: int
    born: float  # ticks after boot or seconds since the epoch; tells one bearer of a pid from the next


def snapshot() -> dict[int, Process]:
    """All processes by pid; those that end meanwhile are left out."""
    return _linux() if LINUX else _portable()


def tree(processes: Mapping[int, Process], roots: Iterable[int]) -> dict[int, Process]:
    """The roots that live and all their descendants."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: dict[int, Process] = {}
    waiting = [pid for pid in roots if pid in processes]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found[pid] = processes[pid]
            waiting.extend(children.get(pid, ()))
    return found


def cpu_between(before: Mapping[int, Process], after: Mapping[int, Process], *, known: set[int]) -> float:
    """CPU seconds that a group used between two looks, short-lived children included.

    A child that ended and was waited for hands its whole time to its parent's ``children_cpu_s``; what was
    counted while it lived is taken off again. The last moments of a process whose parent is outside of the
    group, or which nobody waited for, are lost.

    Args:
        before, after: the group's processes at both looks, by pid.
        known: pids that lived before the first look, in the group or not: their past is not the group's.
    """
    own = reaped = 0.0
    for pid, process in after.items():
        old = before.get(pid)
        if old is not None and old.born == process.born:
            own += process.cpu_s - old.cpu_s
            reaped += process.children_cpu_s - old.children_cpu_s
        elif pid not in known:
            own += process.cpu_s + process.children_cpu_s
    counted = sum(old.cpu_s + old.children_cpu_s for pid, old in before.items() if pid not in after)
    return max(own, 0.0) + max(reaped - counted, 0.0)


def disk_bytes(pid: int) -> tuple[int, int]:
    """Bytes read from and written to disk by one process. Raises PermissionError for another user's."""
    text = Path(f"/proc/{pid}/io").read_text()
    values = dict(line.split(": ") for line in text.splitlines())
    return int(values["read_bytes"]), int(values["write_bytes"])


def private_bytes(pid: int) -> int:
    """Resident memory that is neither a file's nor shared with other processes."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * PAGE


def _linux() -> dict[int, Process]:
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - Path.iterdir makes an object for each of hundreds
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - the same
                data = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        # The name in parentheses may hold spaces and parentheses; proc_pid_stat(5) counts from 1.
        fields = data[data.rindex(b")") + 2 :].split()
        found[int(name)] = Process(
            pid=int(name),
            parent=int(fields[1]),
            faults=int(fields[9]),
            cpu_s=(int(fields[11]) + int(fields[12])) * TICK_S,
            children_cpu_s=(int(fields[13]) + int(fields[14])) * TICK_S,
            born=float(fields[19]),
            resident=int(fields[21]) * PAGE,
        )
    return found


def _portable() -> dict[int, Process]:
    found = {}
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                times, memory = process.cpu_times(), process.memory_info()
                found[process.pid] = Process(
                    pid=process.pid,
                    parent=process.ppid(),
                    faults=getattr(memory, "pageins", 0),
                    cpu_s=times.user + times.system,
                    children_cpu_s=getattr(times, "children_user", 0.0)
                    + getattr(times, "children_system", 0.0),
                    born=process.create_time(),
                    resident=memory.rss,
                )
        except psutil.Error:
            continue
    return found
