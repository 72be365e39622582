"""What a thread of this process does, by the kernel's account: Linux, without privileges.

``/proc/self/task/<tid>/schedstat`` has the time on a CPU and in the run queue (sched-stats, Linux
documentation), ``syscall`` the system call in which a thread stands (proc_pid_syscall(5)). A thread that
waits for the interpreter lock stands in ``futex`` without a Python frame that waits for anything. The sampler
holds that lock while it looks, so that a thread which computes looks the same: only the schedstat of an
interval tells the two apart. ``clock_gettime`` of a thread's CPU clock is no substitute: it is undefined for
a thread that has just ended.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from typing import NamedTuple

_NUMBERS: dict[str, dict[int, str]] = {
    "x86_64": {
        0: "io", 1: "io", 17: "io", 18: "io", 19: "io", 20: "io", 42: "io", 43: "io", 44: "io", 45: "io",
        46: "io", 47: "io", 74: "fsync", 75: "fsync", 257: "file", 2: "file", 7: "poll", 23: "poll",
        270: "poll", 271: "poll", 232: "epoll", 281: "epoll", 441: "epoll", 35: "sleep", 230: "sleep",
        202: "futex", 61: "wait", 247: "wait",
    },
    "aarch64": {
        63: "io", 64: "io", 65: "io", 66: "io", 67: "io", 68: "io", 203: "io", 206: "io", 207: "io",
        211: "io", 212: "io", 82: "fsync", 83: "fsync", 56: "file", 72: "poll", 73: "poll", 22: "epoll",
        441: "epoll", 101: "sleep", 115: "sleep", 98: "futex", 260: "wait", 95: "wait",
    },
}  # fmt: skip
_CALLS = _NUMBERS.get(platform.machine(), {}) if sys.platform.startswith("linux") else {}


class Clock(NamedTuple):
    """Counters of a thread since its start, in seconds."""

    cpu_s: float
    runqueue_s: float


def is_supported() -> bool:
    """Return whether this system tells what a thread does."""
    tid = os.getpid()
    return bool(_CALLS) and os.access(f"/proc/self/task/{tid}/syscall", os.R_OK) and bool(read_clock(tid))


def read_clock(tid: int) -> Clock | None:
    """Return a thread's counters; None for one that has ended or a kernel without them."""
    try:
        with open(f"/proc/self/task/{tid}/schedstat", "rb") as file:  # noqa: PTH123 - twice as fast
            cpu, queued = file.read().split()[:2]
    except (OSError, ValueError):
        return None
    return Clock(int(cpu) / 1e9, int(queued) / 1e9)


def read_call(tid: int) -> tuple[str, int]:
    """Return what a thread does now, and the file descriptor that it waits for (-1: none is known).

    "run": on a CPU, in its run queue, or in a call that is not told apart. "idle": waits for events with a
    timeout. "futex": a lock, or the interpreter's. "io", "poll", "file", "fsync", "sleep", "wait": blocked.
    """
    try:
        with open(f"/proc/self/task/{tid}/syscall", "rb") as file:  # noqa: PTH123 - twice as fast
            fields = file.read().split()
    except OSError:
        return "run", -1
    if not fields or not fields[0].isdigit():
        return "run", -1
    call = _CALLS.get(int(fields[0]), "run")
    if call == "epoll":  # a timeout of 0 only looks: the loop has more to do
        polls = fields[0] != b"441" and int(fields[4], 16) & 0xFFFFFFFF == 0
        return ("run" if polls else "idle"), -1
    return call, int(fields[1], 16) if call in ("io", "fsync") else -1


def peer_of(descriptor: int) -> str:
    """Return the address at the other end of a socket, ``10.0.0.7:443``; empty for anything else."""
    try:
        copy = os.dup(descriptor)
    except OSError:
        return ""
    try:
        with socket.socket(fileno=copy) as link:
            peer = link.getpeername()
    except OSError:
        return ""
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
