"""The real PgBouncer with what was rendered for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg
import pytest

from tenfold.database.pools.pgbouncer import PgBouncer, render
from tenfold.stack.ports import free_port
from tenfold.stack.run_as import unprivileged_account
from tests.support.waiting import eventually

ANYWHERE = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # where Debian has it, off most users' PATH


class Program(NamedTuple):
    """An installed PgBouncer."""

    path: str
    version: tuple[int, int]


class Running(NamedTuple):
    """A running PgBouncer."""

    url: str
    version: tuple[int, int]


def find_program(name: str) -> Program | None:
    path = shutil.which(name, path=ANYWHERE)
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    numbers = re.search(r"(\d+)\.(\d+)", said)
    assert numbers is not None
    return Program(path, (int(numbers[1]), int(numbers[2])))


@pytest.fixture(scope="module", params=["pgbouncer", "pgbouncer-debian-13"])
def program(request: pytest.FixtureRequest, requires_server: Callable[[Any, str], Program]) -> Program:
    """The PgBouncer of this system, and a newer one that .ci/run unpacks."""
    return requires_server(find_program(request.param), request.param)


@contextmanager
def run_pgbouncer(
    program: Program,
    behind: int,
    *changed: str,
    databases: Mapping[str, str],
    users: Mapping[str, str],
    max_db_connections: int = 2,
) -> Iterator[Running]:
    """Run a PgBouncer before a port, with lines of its pgbouncer.ini ``changed``; for the first user."""
    port = free_port()
    pooler = PgBouncer(
        host="127.0.0.1",
        port=behind,
        databases=databases,
        users=users,
        max_db_connections=max_db_connections,
        listen_port=port,
        version=program.version,
    )
    folder = Path(tempfile.mkdtemp(prefix="tenfold-"))
    for file in render(pooler):
        more = "".join(f"{line}\n" for line in changed) if file.path.suffix == ".ini" else ""
        (folder / file.path).write_text(file.text + more)
    account = unprivileged_account()
    if account is not None:
        for place in (folder, *folder.iterdir()):
            os.chown(place, account.uid, account.gid)
    process = subprocess.Popen(
        [program.path, "pgbouncer.ini"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        **({"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}),
    )
    user, password = next(iter(users.items()))
    address = f"{quote(user)}:{quote(password)}@127.0.0.1:{port}/{next(iter(databases))}"
    try:
        eventually(lambda: process.poll() is not None or _accepts(f"postgresql://{address}"))
        yield Running(f"postgresql+psycopg://{address}", program.version)
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _accepts(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=1).close()
    except psycopg.OperationalError:
        return False
    return True
