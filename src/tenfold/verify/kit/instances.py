"""The app's instances in a running stack."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from tenfold.types import Server, Stack


def app_servers(stack: Stack) -> list[Server]:
    """The app's instances, in their order."""
    return [server for server in stack.servers if server.kind == "app"]


def address_of(server: Server) -> str:
    """Host and port, as nginx's log has them."""
    return urlsplit(server.url).netloc


def kill(server: Server) -> None:
    """End every process of a server with SIGKILL, as the kernel does when memory runs out."""
    send_signal(server.pids(), signal.SIGKILL)


@contextmanager
def hang(servers: Iterable[Server], *, least_s: float = 0.0) -> Iterator[None]:
    """Stop servers for a block, ``least_s`` seconds at least: they accept and do not answer."""
    pids = [pid for server in servers for pid in server.pids()]
    until = time.monotonic() + least_s
    try:
        send_signal(pids, signal.SIGSTOP)
        yield
        time.sleep(max(until - time.monotonic(), 0.0))
    finally:
        send_signal(pids, signal.SIGCONT)


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each process that still runs."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
