"""The front door as the checks see it: who should get what, and how to slow down one instance."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenfold.errors import TargetError
from tenfold.types import Server, Stack
from tenfold.verify.kit.accesslog import AccessLog, Row
from tenfold.verify.kit.instances import address_of, app_servers, signal_all
from tenfold.verify.kit.load_clients import Request

if TYPE_CHECKING:
    from tenfold.balancing.settings import BalancingSettings

BACK_S = 1.5  # beyond the time for which nginx leaves a failed instance alone
_STOPPED_S, _RUNNING_S = 0.08, 0.02


@dataclass(frozen=True, slots=True)
class Front:
    """The front door as a check sees it: what it is asked, who answers, and where that is written down.

    Attributes:
        weights: the share that each ordinary instance should get, by its address.
        backups: addresses of those that get requests only when all others are down.
        away_s: how long nginx leaves an instance alone that failed.
    """

    stack: Stack
    read: Request
    weights: dict[str, int]
    backups: tuple[str, ...]
    away_s: float

    @property
    def log(self) -> AccessLog:
        """nginx's access log from now on."""
        assert self.stack.access_log is not None
        return AccessLog(self.stack.access_log)

    def reading(self, _: int = 0) -> int:
        """Send the declared read once, as any client of a crowd; the answer's status."""
        return self.read.send(self.stack.url)

    def ours(self, rows: Iterable[Row], request: Request) -> list[Row]:
        """The rows of ``request``."""
        method, _, path = request.line.partition(" ")
        path = path.partition("?")[0]
        return [row for row in rows if (row.method, row.path) == (method, path)]

    def let_in_again(self, server: Server) -> None:
        """Wait until nginx sends requests to ``server`` after it was away; a backup never gets any."""
        address = address_of(server)
        if address not in self.backups:
            self.log.answered_by(address, self.reading, within_s=self.away_s + BACK_S)


def front(stack: Stack, settings: BalancingSettings, *, ready_path: str) -> Front:
    """The front door of ``stack``, once it has answered.

    Raises:
        TargetError: there is no access log, or the declared read fails before anything was done to it.
    """
    if stack.access_log is None:
        raise TargetError("there is no nginx with an access log: set stack.nginx = true")
    addresses = [address_of(server) for server in app_servers(stack)]
    ordinary = addresses[: len(addresses) - settings.backups] if settings.backups else addresses
    weights = settings.weights or (1,) * len(addresses)
    read = Request(settings.probe_read or f"GET {ready_path}")
    status = read.send(stack.url)
    if not status or status >= 500:
        raise TargetError(f"{read.line} answers {status or 'nothing'}: correct balancing.probe_read")
    shares = dict(zip(ordinary, weights, strict=False))
    return Front(stack, read, shares, tuple(addresses[len(ordinary) :]), settings.fail_timeout_s)


@contextmanager
def slowed(server: Server) -> Iterator[None]:
    """Let an instance run a fifth of the time, in slices; in the end it runs freely, come what may."""
    pids, over = server.pids(), threading.Event()

    def slice_up() -> None:
        try:
            while not over.is_set():
                signal_all(pids, signal.SIGSTOP)
                over.wait(_STOPPED_S)
                signal_all(pids, signal.SIGCONT)
                over.wait(_RUNNING_S)
        finally:
            signal_all(pids, signal.SIGCONT)

    thread = threading.Thread(target=slice_up, name="slow instance", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)
        signal_all(pids, signal.SIGCONT)
