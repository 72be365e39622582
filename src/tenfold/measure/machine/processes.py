"""A snapshot of every process of the machine: parents, CPU time, memory.

On Linux read from ``/proc/PID/stat``, about 15 µs per process; elsewhere through psutil, with less detail.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

LINUX = sys.platform.startswith("linux")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """One process. CPU times in seconds since its start, memory in bytes."""

    pid: int
    parent: int
    cpu_s: float
    children_cpu_s: float  # of children that ended and were waited for, and of theirs
    rss_bytes: int
    started: float  # ticks after boot or seconds since the epoch; tells a reused pid from the earlier one


def snapshot() -> dict[int, Process]:
    """Return all processes by pid, except those that end meanwhile."""
    return _linux() if LINUX else _portable()


def tree(processes: Mapping[int, Process], roots: Iterable[int]) -> dict[int, Process]:
    """Return the living roots and all their descendants."""
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
    """Return the CPU seconds that a group used between two snapshots, short-lived children included.

    A child that ended and was waited for adds its whole time to its parent's ``children_cpu_s``; what was
    counted while it lived is subtracted again. The last moments of a process whose parent is outside the
    group, or that was not waited for, are lost.

    Args:
        before, after: the group's processes in both snapshots, by pid.
        known: all pids of the first snapshot, in the group or not: their earlier CPU time is not counted.
    """
    own = reaped = 0.0
    for pid, process in after.items():
        old = before.get(pid)
        if old is not None and old.started == process.started:
            own += process.cpu_s - old.cpu_s
            reaped += process.children_cpu_s - old.children_cpu_s
        elif pid not in known:
            own += process.cpu_s + process.children_cpu_s
    counted = sum(old.cpu_s + old.children_cpu_s for pid, old in before.items() if pid not in after)
    return max(own, 0.0) + max(reaped - counted, 0.0)


def _linux() -> dict[int, Process]:
    found = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - Path.iterdir creates hundreds of objects
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
            cpu_s=(int(fields[11]) + int(fields[12])) * TICK_S,
            children_cpu_s=(int(fields[13]) + int(fields[14])) * TICK_S,
            started=float(fields[19]),
            rss_bytes=int(fields[21]) * PAGE,
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
                    cpu_s=times.user + times.system,
                    children_cpu_s=getattr(times, "children_user", 0.0)
                    + getattr(times, "children_system", 0.0),
                    started=process.create_time(),
                    rss_bytes=memory.rss,
                )
        except psutil.Error:
            continue
    return found
