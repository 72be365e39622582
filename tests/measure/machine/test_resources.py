"""Sampling of real processes: busy ones, children that start later, short-lived children."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tenfold.errors import MeasurementError
from tenfold.measure.machine import processes
from tenfold.measure.machine.processes import Process
from tenfold.measure.machine.resources import Resources, ResourceSampler
from tests.support.waiting import eventually

BUSY = "while True: pass"
IDLE = "import time; time.sleep(60)"
LATER = f"import subprocess, sys, time; time.sleep(0.3); subprocess.run([sys.executable, '-c', {BUSY!r}])"
SHORT = """
import subprocess, sys
while True:
    subprocess.run([sys.executable, "-c", "for n in range(2_000_000): pass"])
"""


@contextmanager
def running(code: str) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        yield process.pid
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def sampled(code: str, *, samples: int = 6) -> Resources:
    with (
        running(code) as pid,
        ResourceSampler({"it": lambda: [pid]}, interval_s=0.2) as sampler,
    ):
        eventually(lambda: len(sampler.series().samples) >= samples, within_s=20)
        return sampler.series()


@pytest.mark.parametrize("code", [BUSY, LATER, SHORT], ids=["child", "grandchild", "short-lived"])
def test_cpu_of_a_process_tree_is_measured(code: str) -> None:
    resources = sampled(code)
    assert resources.groups["it"].max.cpu_cores > 0.15  # other processes may use the machine
    assert resources.groups["it"].max.cpu_cores < 1.6
    assert resources.groups["it"].max.rss_bytes > 1_000_000


def test_idle_process_tree_uses_no_cpu() -> None:
    assert sampled(IDLE).samples[-1].groups["it"].cpu_cores < 0.05


def test_machine_is_measured() -> None:
    resources = sampled(BUSY)
    assert resources.machine is not None
    mean = resources.machine.mean
    assert 0 < mean.cpu <= 1
    assert mean.cpu + mean.iowait <= 1.001
    assert 0 < mean.memory < 1


def test_between_keeps_only_samples_of_the_window() -> None:
    resources = sampled(IDLE)
    middle = resources.samples[2].at
    assert len(resources.between(middle, time.monotonic()).samples) == len(resources.samples) - 2
    assert resources.between(0, 1).groups == {}
    assert resources.between(0, 1).machine is None


def test_failing_group_does_not_stop_the_sampling() -> None:
    def gone() -> list[int]:
        raise LookupError("no such server")

    with ResourceSampler({"gone": gone, "me": lambda: [os.getpid()]}, interval_s=0.05) as sampler:
        eventually(lambda: sampler.series().groups)
        resources = sampler.series()
    assert set(resources.groups) == {"me"}
    assert any("gone" in reason for reason in resources.not_measured)


@pytest.mark.parametrize("interval_s", [0.0, -1.0, 61.0, float("nan")])
def test_interval_out_of_range_is_refused(interval_s: float) -> None:
    with pytest.raises(MeasurementError, match="interval_s"):
        ResourceSampler({}, interval_s=interval_s)


def process(pid: int, cpu_s: float, children_cpu_s: float = 0.0, *, started: float = 1.0) -> Process:
    return Process(pid, 1, cpu_s, children_cpu_s, 0, started)


@pytest.mark.parametrize(
    ("before", "after", "known", "seconds"),
    [
        ([process(1, 5)], [process(1, 6)], {1}, 1),
        # A child of the first snapshot that ended: only the time not counted while it lived.
        ([process(1, 5), process(2, 3)], [process(1, 5, 3.5)], {1, 2}, 0.5),
        # A child that started and ended between the snapshots.
        ([process(1, 5)], [process(1, 5, 0.4)], {1}, 0.4),
        # A new child counts from its start, a process that only joined the group does not.
        ([process(1, 5)], [process(1, 5), process(2, 0.3), process(3, 90)], {1, 3}, 0.3),
        # A child that was not waited for is lost, and never negative.
        ([process(1, 5), process(2, 3)], [process(1, 5)], {1, 2}, 0),
    ],
)
def test_cpu_between_snapshots(
    before: list[Process], after: list[Process], known: set[int], seconds: float
) -> None:
    old, new = ({p.pid: p for p in snapshot} for snapshot in (before, after))
    assert processes.cpu_between(old, new, known=known) == pytest.approx(seconds)


def test_tree_contains_roots_and_descendants_only() -> None:
    everything = {pid: Process(pid, parent, 0, 0, 0, 0) for pid, parent in [(1, 0), (2, 1), (3, 2), (4, 1)]}
    assert set(processes.tree(everything, [2, 99])) == {2, 3}
