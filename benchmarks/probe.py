"""Cost of the probe: CPU time of the app's worker per request without it, with it idle, with it recording.

    python -m benchmarks.probe [--rounds 40] [--requests 25] [--json]

Three granian workers serve one app, FastAPI and SQLAlchemy, and take turns of a few requests each, so that
other load on the machine affects all three alike. SQLite runs in the process in microseconds: a statement
costs less than over a network driver, so the probe's share is at its largest; with PostgreSQL it is what a
service pays. Recording includes the sampler. The ratio is the median of the rounds' ratios, printed with its
quartiles. Goal: 1.05 with PostgreSQL.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from tenfold.measure.machine.processes import snapshot, tree
from tenfold.measure.probe.collector import Collector
from tenfold.settings import Settings, StackSettings
from tenfold.stack import Stack

PATHS = {"4 statements": "/four", "21 statements, N+1": "/many"}
GOAL = 1.05
VARIANTS = ("without", "idle", "recording")  # and the names of the apps

APP = """
import os
from pathlib import Path
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import ForeignKey, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

class Base(DeclarativeBase): pass

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[int]
    items: Mapped[list["Item"]] = relationship()

class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    name: Mapped[str]

class Answer(BaseModel):
    id: int
    names: list[str]

engine = create_engine(os.environ["DATABASE"])
service = FastAPI()

def prepare():
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        items = lambda: [Item(name="x"), Item(name="y")]
        session.add_all(Order(id=n, customer=n % 50, items=items()) for n in range(1000))
        session.commit()

@service.get("/four")
def four() -> list[Answer]:
    return answers(3)

@service.get("/many")
def many() -> list[Answer]:
    return answers(20)

def answers(limit):
    with Session(engine) as session:
        orders = session.scalars(select(Order).where(Order.customer == 7).limit(limit))
        return [Answer(id=order.id, names=[item.name for item in order.items]) for order in orders]

def probed(name):
    return Probe(service, Path(name).absolute(), root=Path.cwd())

without = service
if os.environ["VARIANT"] != "without":
    from tenfold.measure.probe.probe import Probe
    idle = recording = probed(os.environ["VARIANT"] + ".sock")
"""


@contextmanager
def serve(folder: Path, variant: str) -> Iterator[tuple[httpx.Client, int]]:
    """Serve the app in one granian worker; yield a client and the pid of granian's main process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "granian", f"shop:{variant}", "--interface", "asgi", "--loop", "asyncio",
         "--port", str(port), "--host", "127.0.0.1"],
        cwd=folder, env=os.environ | {"VARIANT": variant}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            _ready(client)
            yield client, server.pid
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(10)


def _ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            client.get("/four").raise_for_status()
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def cpu_ns(pid: int) -> int:
    """Return the CPU time of a process tree, from schedstat: stat has only hundredths of a second."""
    found = 0
    for member in tree(snapshot(), [pid]):
        for thread in Path(f"/proc/{member}/task").iterdir():
            found += int((thread / "schedstat").read_text().split()[0])
    return found


def cost_ms(client: httpx.Client, pid: int, path: str, requests: int) -> float:
    """Send requests; return the worker's CPU milliseconds per request."""
    before = cpu_ns(pid)
    for _ in range(requests):
        client.get(path).raise_for_status()
    return (cpu_ns(pid) - before) / 1e6 / requests


def measure(folder: Path, *, rounds: int, requests: int) -> dict[tuple[str, str], list[float]]:
    """Return (path, variant) → CPU milliseconds per request, one value per round."""
    found: dict[tuple[str, str], list[float]] = {
        (path, variant): [] for path in PATHS.values() for variant in VARIANTS
    }
    with ExitStack() as stack:
        collector = stack.enter_context(Collector(folder / "recording.sock"))
        servers = {variant: stack.enter_context(serve(folder, variant)) for variant in VARIANTS}
        for client, _ in servers.values():
            for path in PATHS.values():
                for _ in range(100):
                    client.get(path).raise_for_status()
        time.sleep(1.5)
        collector.reset()
        for path, variant in turns(list(found), rounds):
            found[path, variant].append(cost_ms(*servers[variant], path, requests))
        time.sleep(0.6)
        if (seen := collector.evidence().requests) != rounds * requests * len(PATHS):
            raise SystemExit(f"only {seen} requests were recorded: nothing to compare")
    return found


def compare(found: dict[tuple[str, str], list[float]], database: str, goal: float | None) -> Iterator[Result]:
    """Yield each variant's ratio to the app without the probe."""
    for label, path in PATHS.items():
        base = found[path, "without"]
        yield median_result(f"{database}, {label}: without, CPU ms", base)
        for variant in VARIANTS[1:]:
            name = f"{database}, {label}: {variant} / without"
            yield ratio_result(name, found[path, variant], base, goal=goal)


def main() -> None:
    """Measure and print the ratios."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenfold-") as name:
        folder = Path(name)
        (folder / "shop.py").write_text(APP)
        print_results(results(folder, options), as_json=options.json)


def results(folder: Path, options: argparse.Namespace) -> Iterator[Result]:
    """Yield the ratios over SQLite, then over PostgreSQL."""
    with Stack(Settings(stack=StackSettings(nginx=False, redis=False))) as stack:
        server = next(one for one in stack.servers if one.kind == "primary")
        databases = {
            "SQLite": "sqlite:///shop.db",
            "PostgreSQL": server.admin_url.replace("postgresql:", "postgresql+psycopg:"),
        }
        for name, url in databases.items():
            os.environ["DATABASE"] = url
            prepare = [sys.executable, "-c", "import shop; shop.prepare()"]
            subprocess.run(prepare, cwd=folder, env=os.environ | {"VARIANT": "without"}, check=True)
            found = measure(folder, rounds=options.rounds, requests=options.requests)
            yield from compare(found, name, GOAL if name == "PostgreSQL" else None)


if __name__ == "__main__":
    main()
