"""The stack's nginx for the balancing checks: requests to it, its log, and a slow instance behind it."""

from __future__ import annotations

import secrets
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tenfold.errors import TargetError
from tenfold.settings import Settings
from tenfold.types import Server, Stack
from tenfold.verify.kit.access_log import AccessLog, LogEntry
from tenfold.verify.kit.instances import address_of, app_servers, send_signal
from tenfold.verify.kit.session_user import user_of
from tenfold.verify.kit.user_agent import UserAgent

_BACK_S = 1.5  # beyond the time for which nginx leaves a failed instance alone
_STOPPED_S, _RUNNING_S = 0.08, 0.02
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class NginxProbe:
    """Requests through nginx, and the instances that it should send them to.

    Attributes:
        user: the client, signed in where a login is declared.
        read: the declared read where it is a GET, else the ready path.
        write: the declared write; empty without one.
        weights: the share that each ordinary instance should get, by its address.
        backups: addresses of the instances that get requests only when all others are down.
        away_s: how long nginx leaves an instance alone that failed, seconds.
    """

    stack: Stack
    user: UserAgent
    read: str
    write: str
    write_body: str
    weights: dict[str, int]
    backups: tuple[str, ...]
    away_s: float

    def send_read(self, _client: int = 0) -> int:
        """Send the read once; return the status of its answer, 0 without one."""
        return self.user.copy().status(self.read)

    def send_write(self, _client: int = 0) -> int:
        """Send the write once, with a new value; return the status of its answer, 0 without one."""
        return self.user.copy().status(
            self.write, body=self.write_body, values={"value": secrets.token_hex(8)}
        )

    def open_log(self) -> AccessLog:
        """nginx's access log from now on."""
        assert self.stack.access_log is not None
        return AccessLog(self.stack.access_log)

    def count_reads(self, entries: Iterable[LogEntry]) -> Counter[str]:
        """The number of reads that each instance answered."""
        return Counter(entry.upstreams[-1] for entry in entries_of(self.read, entries) if entry.upstreams)

    def wait_until_used(self, server: Server) -> None:
        """Wait until nginx sends requests to ``server`` again; return at once for a backup."""
        address = address_of(server)
        if address not in self.backups:
            self.open_log().wait_until_used(address, self.send_read, within_s=self.away_s + _BACK_S)


def entries_of(line: str, entries: Iterable[LogEntry]) -> list[LogEntry]:
    """The log entries of a request, given as its method and path."""
    method, _, path = line.partition(" ")
    path = path.partition("?")[0]
    return [entry for entry in entries if (entry.method, entry.path) == (method, path)]


def probe_nginx(stack: Stack, settings: Settings) -> NginxProbe:
    """A probe of ``stack``, once nginx has answered a read.

    Raises:
        TargetError: there is no access log, or the login or the read fails before any fault.
    """
    if stack.access_log is None:
        raise TargetError("there is no nginx with an access log: set stack.nginx = true")
    balancing, known = settings.balancing, settings.verify
    addresses = [address_of(server) for server in app_servers(stack)]
    ordinary = addresses[: len(addresses) - balancing.backups]
    weights = balancing.weights or (1,) * len(addresses)
    user = user_of(stack, known)
    user.timeout_s = _TIMEOUT_S
    probe = NginxProbe(
        stack,
        user,
        known.read if known.read.startswith("GET ") else f"GET {settings.service.ready_path}",
        known.write.replace("{value}", secrets.token_hex(8)),
        known.write_body,
        dict(zip(ordinary, weights, strict=False)),
        tuple(addresses[len(ordinary) :]),
        balancing.fail_timeout_s,
    )
    status = probe.send_read()
    if not status or status >= 500:
        raise TargetError(f"{probe.read} answers {status or 'nothing'}: correct verify.read")
    return probe


@contextmanager
def slow_down(server: Server, *, stopped_s: float = _STOPPED_S) -> Iterator[None]:
    """Let an instance run for 20 ms between stops, a fifth of the time; it runs freely after the block.

    Short stops touch nearly every request, long ones few: "least_conn" sends it hardly any meanwhile.
    """
    pids, stopping = server.pids(), threading.Event()

    def slice_up() -> None:
        try:
            while not stopping.is_set():
                send_signal(pids, signal.SIGSTOP)
                stopping.wait(stopped_s)
                send_signal(pids, signal.SIGCONT)
                stopping.wait(_RUNNING_S)
        finally:
            send_signal(pids, signal.SIGCONT)

    thread = threading.Thread(target=slice_up, name="slow instance", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(5)
        send_signal(pids, signal.SIGCONT)
