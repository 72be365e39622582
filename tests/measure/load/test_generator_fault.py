"""Late arrivals: the generator's own work, a locustfile that blocks, or a machine that is full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tenfold.measure.machine.priority import NICENESS, LowPriority
from tenfold.measure.trial import GeneratorHealth, Stalls
from tests.support.waiting import eventually

LINUX = Path("/proc/self/schedstat").exists()
linux_only = pytest.mark.skipif(not LINUX, reason="Linux accounts for the run queue in /proc")


def health(
    cpu: float, late: float, stalls: tuple[float, float, float] | None = (0.0, 0.0, 0.0)
) -> GeneratorHealth:
    return GeneratorHealth(cpu, late, 10.0, stalls=Stalls(*stalls) if stalls else None)


@pytest.mark.parametrize(
    ("found", "limited", "fault"),
    [
        (health(0.1, 0.0), False, "none"),
        (health(0.1, 0.5, (0.0, 2.0, 0.0)), False, "none"),  # the run queue: the machine is full
        (health(0.1, 0.5, (0.5, 2.0, 0.5)), False, "none"),
        (health(0.8, 0.5, (2.0, 0.5, 0.0)), True, "cpu"),
        (health(0.8, 0.5, (0.5, 2.0, 0.0)), False, "none"),  # busy, but late because of others
        (health(0.5, 0.5, (2.0, 0.5, 0.0)), False, "none"),  # not busy: bursts of its own work
        (health(0.1, 0.5, (0.1, 0.1, 2.0)), True, "blocked"),
        (health(0.1, 0.01, (0.1, 0.1, 2.0)), False, "blocked"),  # hardly anything was late
        (health(0.96, 0.0), True, "none"),
        (health(0.1, 0.5, None), True, "unknown"),  # as where the system does not tell
    ],
)
def test_fault(found: GeneratorHealth, limited: bool, fault: str) -> None:
    assert (found.is_limited(), found.fault) == (limited, fault)


WATCH = """
import sys, json, time
from gevent import monkey; monkey.patch_all()
import gevent
from pathlib import Path
from tenfold.measure.load.locust.stalls import StallWatch

sys.path.insert(0, {folder!r})
import locustfile_here
watch = StallWatch(Path({folder!r}))
watch.start()
gevent.sleep(0.05)
gevent.spawn(locustfile_here.{task}).join()
gevent.sleep(0.05)
stalls = watch.stop()
print(json.dumps([stalls.on_cpu_s, stalls.queued_s, stalls.blocked_s, stalls.blocked_at]))
"""
LOCUSTFILE = """
import time
from gevent.monkey import get_original
sleep = get_original("time", "sleep")

def computes():
    until = time.process_time() + 0.6
    while time.process_time() < until:
        pass

def blocks():
    for _ in range(3):
        sleep(0.2)

def waits():
    time.sleep(0.3)
"""


def stalls_of(task: str, folder: Path, *, cpu: int | None = None) -> tuple[float, float, float, str]:
    """The stalls of a process in which one user runs a task, on one CPU if it is given."""
    (folder / "locustfile_here.py").write_text(LOCUSTFILE)
    code = WATCH.format(folder=str(folder), task=task)
    command = [sys.executable, "-c", code]
    if cpu is not None:
        command = ["taskset", "-c", str(cpu), *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    on_cpu, queued, blocked, line = json.loads(done.stdout)
    return on_cpu, queued, blocked, line


@linux_only
def test_locustfile_that_blocks_is_named_with_its_line(tmp_path: Path) -> None:
    on_cpu, queued, blocked, line = stalls_of("blocks", tmp_path)
    assert blocked > 0.3 and blocked > 2 * (on_cpu + queued)
    assert line == "locustfile_here.py:13"


@linux_only
def test_locustfile_that_computes_is_the_generators_own_work(tmp_path: Path) -> None:
    on_cpu, _, blocked, _ = stalls_of("computes", tmp_path)
    assert on_cpu > 0.2 and on_cpu > blocked


@linux_only
def test_user_that_waits_is_no_stall(tmp_path: Path) -> None:
    on_cpu, _, blocked, line = stalls_of("waits", tmp_path)
    assert on_cpu + blocked < 0.15 and line == ""


@linux_only
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="binds processes to a CPU")
def test_busy_machine_is_the_run_queue(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    others = [
        subprocess.Popen(["taskset", "-c", str(cpu), sys.executable, "-c", "while True: pass"])
        for _ in range(4)
    ]
    try:
        on_cpu, queued, blocked, _ = stalls_of("computes", tmp_path, cpu=cpu)
    finally:
        for other in others:
            other.kill()
            other.wait(10)
    assert queued > on_cpu + blocked


@linux_only
def test_servers_of_a_stack_run_at_low_priority() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '30'])"],
        start_new_session=True,
    )
    try:
        with LowPriority([lambda: [server.pid]]):
            eventually(lambda: os.getpriority(os.PRIO_PROCESS, server.pid) == NICENESS)
            group = Path(f"/proc/{server.pid}/autogroup")
            if group.exists():
                eventually(lambda: group.read_text().endswith(f"nice {NICENESS}\n"))
        assert os.getpriority(os.PRIO_PROCESS, 0) < NICENESS, "not this process"
    finally:
        os.killpg(server.pid, 9)
        server.wait(10)


def test_server_that_is_replaced_is_left_out() -> None:
    def fails() -> list[int]:
        raise RuntimeError("no such server")

    with LowPriority([fails, lambda: [2**22]]):
        pass
