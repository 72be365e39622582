"""Tasks from end to end: beside Celery with safe settings, Dramatiq and procrastinate.

    python -m benchmarks.tasks [--rounds 5] [--tasks 1000] [--json]

Each system has two worker processes, on one real PostgreSQL and one real Redis. Both sides of each commit one
INSERT a task: the caller an order, the worker an effect. A round places all orders one after the other, as
fast as the caller can, and ends when the last effect is committed; the systems take turns, and the workers of
the others idle. tenfold and procrastinate enqueue in the order's transaction, the others after it, so that a
crash in between loses the task; tenfold's effect and its outcome are one transaction besides.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from tenfold.errors import DependencyError
from tenfold.settings import Settings, StackSettings
from tenfold.stack import Stack
from tenfold.tasks.table import create_table

MODULE = "benchmarks.support.task_services"
CELERY = [sys.executable, "-m", "celery", "-A", f"{MODULE}:app", "worker", "-c", "2", "-l", "WARNING"]
WORKERS = {
    "tenfold": [*CELERY, "--without-gossip", "--without-mingle"],
    "celery": [*CELERY, "--without-gossip", "--without-mingle"],
    "dramatiq": [sys.executable, "-m", "dramatiq", MODULE, "--processes", "2", "--threads", "1"],
    "procrastinate": [sys.executable, "-m", "procrastinate", "-a", f"{MODULE}.app", "worker", "-c", "1"],
}
PROCESSES = {"procrastinate": 2}  # of which each runs one task at a time
START_TIMEOUT_S, ROUND_TIMEOUT_S = 60, 120

# The caller: places the orders that it is told to, and prints how long each took.
CALLER = f"""
import sys, time
from {MODULE} import order
for line in sys.stdin:
    times = []
    for number in range(int(line)):
        started = time.perf_counter()
        order(f"order {{number}}")
        times.append(time.perf_counter() - started)
    print(*times, flush=True)
"""


class System:
    """One system's workers and its caller."""

    def __init__(self, name: str, environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.environment = {**os.environ, **environment, "SYSTEM": name, "C_FORCE_ROOT": "1"}
        self.engine = create_engine(environment["DATABASE_URL"])
        self.log = folder / f"{name}.log"
        self.processes = [
            self.start(WORKERS[name]) for _ in range(PROCESSES.get(name, 1))
        ]  # fmt: skip
        self.caller = self.start(
            [sys.executable, "-c", CALLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, command: Sequence[str], **pipes: Any) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env=self.environment, start_new_session=True, stderr=log, **{"stdout": log, **pipes}
            )

    def run(self, tasks: int, *, within_s: float = ROUND_TIMEOUT_S) -> tuple[float, list[float]]:
        """Place orders; return the seconds until all have had their effect, and those of each placing."""
        with self.engine.begin() as connection:
            connection.execute(text("TRUNCATE orders, effects"))
        assert self.caller.stdin and self.caller.stdout
        started = time.perf_counter()
        self.caller.stdin.write(f"{tasks}\n".encode())
        self.caller.stdin.flush()
        placed = [float(word) for word in self.caller.stdout.readline().split()]
        if len(placed) != tasks:
            raise RuntimeError(f"the caller of {self.name} ended: {self.log.read_text()[-2000:]}")
        while self.count() < tasks:
            if time.perf_counter() - started > within_s:
                raise RuntimeError(
                    f"{self.name} did {self.count()} of {tasks} tasks: {self.log.read_text()[-2000:]}"
                )
            time.sleep(0.005)
        return time.perf_counter() - started, placed

    def count(self) -> int:
        with self.engine.connect() as connection:
            return int(connection.execute(text("SELECT count(*) FROM effects")).scalar_one())

    def close(self) -> None:
        for process in [*self.processes, self.caller]:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.engine.dispose()


@contextmanager
def systems() -> Iterator[list[System]]:
    """All systems, ready.

    Raises:
        DependencyError: the peers are not installed.
    """
    try:
        import dramatiq  # noqa: F401
        import procrastinate
    except ImportError:
        raise DependencyError(
            "the peers are not installed: pip install 'tenfold[bench]', or make bench"
        ) from None
    settings = Settings(stack=StackSettings(nginx=False))
    with Stack(settings) as stack, ExitStack() as opened, tempfile.TemporaryDirectory() as folder:
        urls = {server.kind: server.url for server in stack.servers}
        url = urls["primary"].replace("postgresql://", "postgresql+psycopg://", 1)
        engine = create_engine(url)
        create_table(engine)
        schema = Path(procrastinate.__file__).parent / "sql" / "schema.sql"
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE orders (id bigserial PRIMARY KEY, name text)"))
            connection.execute(text("CREATE TABLE effects (id bigserial PRIMARY KEY, name text)"))
            connection.exec_driver_sql(schema.read_text().replace("%", "%%"))
        engine.dispose()
        made = []
        for name in WORKERS:
            made.append(System(name, {"DATABASE_URL": url, "TASK_BROKER": urls["redis"]}, Path(folder)))
            opened.callback(made[-1].close)
        for system in made:
            system.run(20, within_s=START_TIMEOUT_S)
        yield made


def measure(rounds: int, tasks: int) -> Iterator[Result]:
    """Run the rounds, and compare."""
    seconds: dict[str, list[float]] = {name: [] for name in WORKERS}
    placing: dict[str, list[float]] = {name: [] for name in WORKERS}
    with systems() as made:
        for system in turns(made, rounds):
            taken, placed = system.run(tasks)
            seconds[system.name].append(taken)
            placing[system.name].append(sorted(placed)[int(0.99 * len(placed))])
    for name in WORKERS:
        yield median_result(f"{name}, tasks/s", [tasks / taken for taken in seconds[name]])
    rates = {name: [tasks / taken for taken in found] for name, found in seconds.items()}
    for name in [name for name in WORKERS if name != "tenfold"]:
        goal = 0.8 if name == "celery" else None
        yield ratio_result(f"tenfold / {name}", rates["tenfold"], rates[name], goal=goal, at_least=True)
    for name in WORKERS:
        yield median_result(f"{name}, p99 of placing an order, ms", [1000 * one for one in placing[name]])


def main() -> None:
    """Print the results."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=1000, help="in each round")
    options = parser.parse_args()
    print_results(measure(options.rounds, options.tasks), as_json=options.json)


if __name__ == "__main__":
    main()
