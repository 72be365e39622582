"""Replacing instances one after the other, so that no request notices. Pure: it calls what it is given.

The order is the whole point: out of the balancer, wait for the requests that are under way, end, start, wait
until the new one is ready, in again. Ending first and letting the balancer find out costs the requests that
are just being sent; letting a new one in before it is ready costs those that it cannot answer yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tenfold.errors import ReplacementError, TenfoldError

POLL_S = 0.05


class Target(Protocol):
    """An instance behind a balancer. A step returns when it has taken effect, and raises when it cannot."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def leave(self) -> None:
        """Let the balancer send it nothing more."""

    def drained(self) -> bool:
        """Whether everything that the balancer had sent it is answered."""

    def stop(self) -> None:
        """End it; one that has ended already stays so."""

    def start(self) -> None:
        """Start the new one."""

    def ready(self) -> bool:
        """Whether the new one can take requests."""

    def join(self) -> None:
        """Let the balancer send it requests again."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """How a replacement went.

    Attributes:
        name: of the instance.
        drained: whether every request was answered before the old one was ended; otherwise time was over.
        drain_s: seconds that took.
        away_s: seconds between leaving the balancer and being in again.
    """

    name: str
    drained: bool
    drain_s: float
    away_s: float


def replace(
    target: Target,
    *,
    drain_timeout_s: float = 60.0,
    ready_timeout_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Replacement:
    """Replace ``target``; a new one that does not come up stays out of the balancer.

    Args:
        drain_timeout_s: longest wait for its requests; what then still runs is ended with it.
        ready_timeout_s: longest wait for the new one.
        clock: seconds that only grow.
        sleep: waits that many seconds.

    Raises:
        ReplacementError: the message says whether the old one still serves, or nobody does in its place.
    """

    began = clock()
    with _otherwise(f"{target.name} was not replaced and serves as before"):
        target.leave()
    with _otherwise(f"{target.name} stays out of the balancer"):
        drained = _wait(target.drained, drain_timeout_s, clock, sleep)
        drain_s = clock() - began
        target.stop()
        target.start()
        if not _wait(target.ready, ready_timeout_s, clock, sleep):
            raise ReplacementError(f"it was not ready within {ready_timeout_s:g} s")
    with _otherwise(f"{target.name} is replaced and ready, but not let in"):
        target.join()
    return Replacement(target.name, drained, drain_s, clock() - began)


@contextmanager
def _otherwise(state: str) -> Iterator[None]:
    """Begin the message of whatever fails within with the state that things are left in."""
    try:
        yield
    except TenfoldError as error:
        raise ReplacementError(f"{state}: {error}") from error


def _wait(
    look: Callable[[], bool],
    timeout_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], object],
) -> bool:
    deadline = clock() + timeout_s
    while not look():
        if clock() >= deadline:
            return False
        sleep(POLL_S)
    return True


def replace_all(
    targets: Iterable[Target], *, drain_timeout_s: float = 60.0, ready_timeout_s: float = 30.0
) -> tuple[Replacement, ...]:
    """Replace one target after the other; the first failure ends it, and those after it stay as they are.

    Raises:
        ReplacementError: see :func:`replace`.
    """
    return tuple(
        replace(target, drain_timeout_s=drain_timeout_s, ready_timeout_s=ready_timeout_s)
        for target in targets
    )
