"""Real processes: busy ones, children that come later, children that come and go."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tenfold.errors import MeasurementError
from tenfold.measure.diagnosis import processes
from tenfold.measure.diagnosis.processes import Process
from tenfold.measure.diagnosis.resources import Resources, ResourceSampler
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
def test_cpu_of_a_busy_tree_is_seen(code: str) -> None:
    resources = sampled(code)
    assert resources.groups["it"].max.cpu_cores > 0.15  # the machine may be busy with something else
    assert resources.groups["it"].max.cpu_cores < 1.6
    assert resources.groups["it"].max.rss_bytes > 1_000_000
    assert resources.groups["it"].max.private_bytes < resources.groups["it"].max.rss_bytes


def test_an_idle_tree_uses_nothing() -> None:
    assert sampled(IDLE).samples[-1].groups["it"].cpu_cores < 0.05


def test_machine_and_own_cost() -> None:
    resources = sampled(BUSY)
    assert resources.machine is not None
    mean = resources.machine.mean
    assert 0 < mean.cpu <= 1
    assert mean.cpu + mean.iowait + mean.steal <= 1.001
    assert 0 < mean.memory < 1
    assert mean.running >= 1
    assert 0 < resources.own_cpu_s < 5


def test_a_window_holds_only_its_samples() -> None:
    resources = sampled(IDLE)
    middle = resources.samples[2].at
    assert len(resources.between(middle, time.monotonic()).samples) == len(resources.samples) - 2
    assert resources.between(0, 1).groups == {}
    assert resources.between(0, 1).machine is None


def test_a_group_whose_server_is_gone_does_not_end_the_sampling() -> None:
    def gone() -> list[int]:
        raise LookupError("no such server")

    with ResourceSampler({"gone": gone, "me": lambda: [os.getpid()]}, interval_s=0.05) as sampler:
        eventually(lambda: sampler.series().groups)
        resources = sampler.series()
    assert set(resources.groups) == {"me"}
    assert any("gone" in reason for reason in resources.not_measured)


def test_disk_of_another_user_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int) -> tuple[int, int]:
        raise PermissionError

    monkeypatch.setattr(processes, "disk_bytes", forbidden)
    (reason,) = [text for text in sampled(IDLE, samples=1).not_measured if "disk" in text]
    assert reason.startswith("disk of it: its processes belong to another user")


@pytest.mark.parametrize("interval_s", [0.0, -1.0, 61.0, float("nan")])
def test_an_impossible_interval_is_refused(interval_s: float) -> None:
    with pytest.raises(MeasurementError, match="interval_s"):
        ResourceSampler({}, interval_s=interval_s)


def process(pid: int, cpu_s: float, children_cpu_s: float = 0.0, *, born: float = 1.0) -> Process:
    return Process(pid, 1, cpu_s, children_cpu_s, 0, 0, born)


@pytest.mark.parametrize(
    ("before", "after", "known", "seconds"),
    [
        ([process(1, 5)], [process(1, 6)], {1}, 1),
        # A child of known age that ended: only what was not counted while it lived.
        ([process(1, 5), process(2, 3)], [process(1, 5, 3.5)], {1, 2}, 0.5),
        # A child that came and went between two looks.
        ([process(1, 5)], [process(1, 5, 0.4)], {1}, 0.4),
        # A new child counts from its birth, a process that only joined the group does not.
        ([process(1, 5)], [process(1, 5), process(2, 0.3), process(3, 90)], {1, 3}, 0.3),
        # A child that nobody waited for is lost, and never negative.
        ([process(1, 5), process(2, 3)], [process(1, 5)], {1, 2}, 0),
    ],
)
def test_cpu_between(before: list[Process], after: list[Process], known: set[int], seconds: float) -> None:
    old, new = ({p.pid: p for p in looked} for looked in (before, after))
    assert processes.cpu_between(old, new, known=known) == pytest.approx(seconds)


def test_a_tree_holds_descendants_only() -> None:
    everything = {
        pid: Process(pid, parent, 0, 0, 0, 0, 0) for pid, parent in [(1, 0), (2, 1), (3, 2), (4, 1)]
    }
    assert set(processes.tree(everything, [2, 99])) == {2, 3}
