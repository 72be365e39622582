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

from tests.examples.support.shop_postgresql import free_port

EXAMPLES = Path(__file__).parents[3] / "examples"
READY_TIMEOUT_S = 60.0
SECRET_KEY = "of the tests, and long enough for a key"


@dataclass(frozen=True)
class Variant:
    """The service settings of a variant."""

    app: str
    prepare: str


VARIANTS = {
    "naive": Variant(app="shop.naive.app:app", prepare="shop.naive.data:load"),
    "scaled": Variant(app="shop.scaled.app:app", prepare="shop.scaled.data:load"),
}


def environment(database_url: str, redis_url: str = "") -> dict[str, str]:
    paths = [str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])]
    servers = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SECRET_KEY": SECRET_KEY}
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


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).is_success:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the shop did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)
