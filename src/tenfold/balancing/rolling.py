"""Rolling replacement of an instance without a failed request. Pure: it calls what it is given.

The order: out of the balancer, wait for the requests in flight, stop, start, wait until the new one is ready,
into the balancer again. Stopping first fails the requests that are being sent; joining before it is ready
fails those that it cannot answer yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tenfold.errors import ReplacementError, TenfoldError

POLL_S = 0.05


class ReplaceableInstance(Protocol):
    """An instance behind a balancer. A step returns when it has taken effect, and raises when it cannot."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    def leave(self) -> None:
        """Take it out of the balancer."""

    def is_drained(self) -> bool:
        """Return whether every request that the balancer sent it is answered."""

    def stop(self) -> None:
        """Stop it; one that has ended already stays so."""

    def start(self) -> None:
        """Start the new one."""

    def is_ready(self) -> bool:
        """Return whether the new one can take requests."""

    def join(self) -> None:
        """Put it into the balancer again."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """A finished replacement.

    Attributes:
        name: of the instance.
        drained: False if the old one was stopped at the end of ``drain_timeout_s`` with requests in flight.
        drain_s: duration of the wait for its requests, seconds.
        away_s: time between leaving the balancer and joining it again, seconds.
    """

    name: str
    drained: bool
    drain_s: float
    away_s: float


def replace(
    instance: ReplaceableInstance,
    *,
    drain_timeout_s: float = 60.0,
    ready_timeout_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Replacement:
    """Replace ``instance``; a new one that does not get ready stays out of the balancer.

    Args:
        drain_timeout_s: longest wait for its requests; those that still run then are cut off.
        ready_timeout_s: longest wait for the new one.
        clock: monotonic seconds.
        sleep: waits that many seconds.

    Raises:
        ReplacementError: the message says whether the old one still serves, or none does in its place.
    """
    began = clock()
    with _prefix_errors(f"{instance.name} was not replaced and serves as before"):
        instance.leave()
    with _prefix_errors(f"{instance.name} stays out of the balancer"):
        drained = _wait_until(instance.is_drained, drain_timeout_s, clock, sleep)
        drain_s = clock() - began
        instance.stop()
        instance.start()
        if not _wait_until(instance.is_ready, ready_timeout_s, clock, sleep):
            raise ReplacementError(f"it was not ready within {ready_timeout_s:g} s")
    with _prefix_errors(f"{instance.name} is replaced and ready, but not let in"):
        instance.join()
    return Replacement(instance.name, drained, drain_s, clock() - began)


@contextmanager
def _prefix_errors(state: str) -> Iterator[None]:
    """Put the state in which things are left before the message of an error."""
    try:
        yield
    except TenfoldError as error:
        raise ReplacementError(f"{state}: {error}") from error


def _wait_until(
    is_done: Callable[[], bool],
    timeout_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
) -> bool:
    deadline = clock() + timeout_s
    while not is_done():
        if clock() >= deadline:
            return False
        sleep(POLL_S)
    return True
