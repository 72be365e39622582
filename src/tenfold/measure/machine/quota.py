"""The CPUs that this process may use: its affinity, and the quota of its control group (cgroup v2)."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

ROOT = Path("/sys/fs/cgroup")


def allowed_cores(root: Path = ROOT) -> float:
    """Return the cores that this process may use at once: not those that the machine has."""
    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS
        cores = float(psutil.cpu_count() or 1)
    try:
        quota, period = (group(root) / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def throttled_us(root: Path = ROOT) -> int:
    """Return for how long the control group has been throttled so far, in microseconds; 0 without a quota."""
    try:
        lines = (group(root) / "cpu.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("throttled_usec ")), 0)


def group(root: Path = ROOT) -> Path:
    """Return the folder of this process's control group."""
    try:
        path = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    except OSError:
        path = ""
    return root / path if (root / path / "cpu.stat").exists() else root
