"""A variant of the shop as a process: granian, one worker, on a free port of loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tenfold.stack.ports import free_port
from tests.support.waiting import eventually

EXAMPLES = Path(__file__).parents[3] / "examples"
READY_TIMEOUT_S = 60.0
SECRET_KEY = "of the tests, and long enough for a key"


@dataclass(frozen=True)
class Variant:
    """The service settings of a variant."""

    app: str
    prepare: str
    celery: str = ""


VARIANTS = {
    "naive": Variant(app="shop.naive.app:app", prepare="shop.naive.data:load"),
    "scaled": Variant(
        app="shop.scaled.app:app", prepare="shop.scaled.data:load", celery="shop.scaled.tasks:celery"
    ),
}


def environment(database_url: str, redis_url: str = "", store: str = "memory:///") -> dict[str, str]:
    paths = [str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])]
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SECRET_KEY": SECRET_KEY}
    servers["STORE_URL"] = store
    return {**os.environ, **servers, "PYTHONPATH": os.pathsep.join(paths)}


def prepare(variant: Variant, database_url: str) -> None:
    """Call the variant's ``prepare`` as the stack does: in a process that sees the app's environment."""
    module, _, name = variant.prepare.partition(":")
    code = f"import {module}; {module}.{name}()"
    subprocess.run([sys.executable, "-c", code], env=environment(database_url), check=True, timeout=60)


@contextmanager
def serving(variant: Variant, database_url: str, redis_url: str, log: Path) -> Iterator[str]:
    """Start the variant and wait until it is ready; yields its URL."""
    port = free_port()
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--port", str(port), variant.app]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment(database_url, redis_url),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/health/ready", process, log)
        yield url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with suppress(ProcessLookupError):  # granian's worker outlives a killed main process
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def working(
    variant: Variant, database_url: str, redis_url: str, folder: Path, *, store: str = ""
) -> Iterator[None]:
    """Run one worker for all queues of a variant that has some; its files go to ``store``, or the folder."""
    if not variant.celery:
        yield
        return
    command = [sys.executable, "-m", "celery", "-A", variant.celery, "worker", "-l", "INFO", "-c", "2"]
    log = folder / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "-Q", "default,emails,reports,video", "--without-gossip", "--without-mingle"],
            env={**environment(database_url, redis_url, store or folder.as_uri()), "C_FORCE_ROOT": "1"},
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        eventually(lambda: "ready." in log.read_text(), within_s=READY_TIMEOUT_S)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).is_success:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the shop did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)
