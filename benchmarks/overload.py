"""Goodput of a service at three times its capacity, with and without the limiter, in one run.

Two endpoints of known cost, each served by granian in one process: one of an event loop that computes, one of
threads that wait for one of ten connections. The capacity is what the bare service sustains within the
objective (p95 below 200 ms), by bisection. Then both services are asked for three times that, open-loop, in
turns. *kept* is good answers a second, from the third second of each trial on, over the capacity. *of work*
is the same over what the bare service completed beside it, too late or not: a ratio for machines whose pace
changes. At the end: the requests refused at 0.7 of the capacity. Goals: at least 0.9 kept with the limiter,
and none refused at 0.7.

    python -m benchmarks.overload [--rounds 3] [--seconds 8] [--work-ms 5] [--only loop] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from tenfold.measure.load.generator import Generator
from tenfold.measure.load.histogram import percentile
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Trial, TrialRequest

FACTOR = 3.0
CALM = 0.7
KEPT, REFUSED_CALM = 0.9, 0  # goals
USERS = 400
CONNECTIONS = 10
SETTLED_S = 2.0
SERVICE = """
import asyncio, os, threading, time
from fastapi import FastAPI
from tenfold.overload import ConcurrencyLimiter

work_s = float(os.environ["WORK_S"])
connections = threading.BoundedSemaphore(int(os.environ["CONNECTIONS"]))
app = FastAPI()

@app.get("/loop")
async def loop() -> str:
    ends = time.thread_time() + work_s
    while time.thread_time() < ends:
        pass
    return "done"

@app.get("/threads")
def threads() -> str:
    with connections:
        time.sleep(10 * work_s)
    return "done"

if os.environ["LIMITER"] == "1":
    app = ConcurrencyLimiter(app)
"""
LOCUSTFILE = """
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def one(self):
        self.client.get("{path}")
"""


@contextlib.contextmanager
def service(folder: Path, *, limiter: bool, work_s: float) -> Iterator[str]:
    """Serve the app with granian on a free loopback port; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "shed_service.py").write_text(SERVICE)
    environment = os.environ | {
        "LIMITER": str(int(limiter)), "WORK_S": str(work_s), "CONNECTIONS": str(CONNECTIONS),
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "granian",
        "shed_service:app",
        "--interface",
        "asgi",
        "--loop",
        "asyncio",
    ]
    server = subprocess.Popen(
        [*command, "--loop", "asyncio", "--host", "127.0.0.1", "--port", str(port)],
        env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(10)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        if time.monotonic() > deadline:
            sys.exit("granian does not start")
        time.sleep(0.05)


class Load:
    """Open-loop arrivals at one endpoint of one service."""

    def __init__(self, url: str, path: str, folder: Path) -> None:
        scenario = folder / f"locustfile_{path}.py"
        scenario.write_text(LOCUSTFILE.format(path=f"/{path}"))
        self._generator = Generator(scenario, url, settings=MeasureSettings(max_users=USERS))
        self._seed = 0

    def __enter__(self) -> Load:
        self._generator.__enter__()
        self._generator.start_users(USERS)
        return self

    def __exit__(self, *error: object) -> None:
        self._generator.__exit__(*error)

    def run(self, rate: float, seconds: float) -> Trial:
        self._seed += 1
        return self._generator.run(TrialRequest(rate, seconds, "overload", seed=self._seed, settle_s=10.0))


def capacity(load: Load, highest: float, seconds: float) -> float:
    """Bisect for the highest rate with at most one bad arrival in twenty, in four steps."""
    low, high = 0.4 * highest, 1.1 * highest
    load.run(low, seconds)
    for _ in range(4):
        middle = (low + high) / 2
        if load.run(middle, seconds).bad_share <= 0.05:
            low = middle
        else:
            high = middle
    return low


def admitted_p95(trial: Trial) -> float:
    """Return the p95 of admitted requests, ms: a higher percentile of all, as refusals are the fastest."""
    refused = sum(block.refused for block in trial.blocks) / max(trial.offered, 1)
    return percentile(trial.corrected, 100 - 5 * (1 - refused))


def goodput(trial: Trial) -> float:
    """Return good answers a second, after the limit had time to settle."""
    blocks = [block for block in trial.blocks if block.start_s >= SETTLED_S]
    return sum(block.good for block in blocks) / sum(block.seconds for block in blocks)


def compare(path: str, ideal: float, options: argparse.Namespace) -> Iterator[Result]:
    """Yield the results of one endpoint."""
    work_s = options.work_ms / 1000
    with contextlib.ExitStack() as stack:
        loads = {}
        for name in ("bare", "limiter"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tenfold-bench-")))
            url = stack.enter_context(service(folder, limiter=name == "limiter", work_s=work_s))
            loads[name] = stack.enter_context(Load(url, path, folder))
        sustained = capacity(loads["bare"], ideal, options.seconds)
        yield Result(f"{path}: capacity, requests/s", sustained)
        trials: dict[str, list[Trial]] = {"bare": [], "limiter": []}
        for name in turns(list(loads), options.rounds):
            trials[name].append(loads[name].run(FACTOR * sustained, options.seconds))
        for name, found in trials.items():
            yield from overloaded(f"{path}, {name}", found, trials["bare"], sustained)
        calm = loads["limiter"].run(CALM * sustained, 2 * options.seconds)
        beside = loads["bare"].run(CALM * sustained, options.seconds)
        refused = sum(block.refused for block in calm.blocks)
        note = f"of {calm.offered:,} requests"
        yield Result(f"{path}, limiter: refused at {CALM}", refused, REFUSED_CALM, note=note)
        yield Result(f"{path}, limiter: bad share at {CALM}", calm.bad_share)
        yield Result(f"{path}, bare: bad share at {CALM}", beside.bad_share)


def completed(trial: Trial) -> float:
    """Return answers of 200 a second, however late, until the last one arrived."""
    answers = sum(endpoint.statuses.get("200", 0) for endpoint in trial.endpoints)
    return answers / (trial.seconds + trial.settled_s)


def overloaded(name: str, trials: list[Trial], bare: list[Trial], sustained: float) -> Iterator[Result]:
    """Yield the results of one service under too much load."""
    good = [goodput(trial) for trial in trials]
    goal = KEPT if name.endswith("limiter") else None
    yield ratio_result(f"{name}: kept", good, [sustained] * len(good), goal=goal, at_least=True)
    yield ratio_result(f"{name}: of work", good, [completed(trial) for trial in bare])
    refused = [sum(block.refused for block in trial.blocks) / trial.offered for trial in trials]
    yield median_result(f"{name}: refused share", refused)
    yield median_result(f"{name}: p95 of admitted requests, ms", [admitted_p95(trial) for trial in trials])


def results(options: argparse.Namespace) -> Iterator[Result]:
    work_s = options.work_ms / 1000
    for path, ideal in (("loop", 1 / work_s), ("threads", CONNECTIONS / (10 * work_s))):
        if options.only in (None, path):
            yield from compare(path, ideal, options)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument(
        "--work-ms", type=float, default=5.0, help="of the loop's time; threads wait ten times that"
    )
    parser.add_argument("--only", choices=["loop", "threads"])
    options = parser.parse_args()
    print_results(results(options), as_json=options.json)


if __name__ == "__main__":
    main()
