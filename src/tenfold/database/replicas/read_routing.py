"""Read routing: finds a server that is fresh enough for a read, by choice, health and freshness."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Collection, Sequence

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.util import await_only

from tenfold.database.replicas.checkout import Checkout, ServerLostError
from tenfold.database.replicas.freshness import (
    Freshness,
    FreshnessLimits,
    freshness,
    is_pinned,
    poll_intervals,
)
from tenfold.database.replicas.read_counters import ReadCounters
from tenfold.database.replicas.servers import Choice, Cluster, DatabaseServer, read_order
from tenfold.errors import DeadlineExceededError, NoReplicaError
from tenfold.positions import Token

__all__ = ["ReadRouting"]


class ReadRouting:
    """Checkouts for reads, checked against what their reader has seen. Thread-safe.

    Args:
        replicas: the servers for reads; when none of them may serve, ``primary`` does.
        sample_s: a replica whose lag exceeds this and the longest wait is not waited for.
    """

    def __init__(
        self,
        replicas: Sequence[DatabaseServer],
        primary: DatabaseServer,
        *,
        cluster: Cluster,
        limits: FreshnessLimits,
        choice: Choice,
        sample_s: float,
    ) -> None:
        self._replicas, self._primary = tuple(replicas), primary
        self._cluster, self._limits, self._choice = cluster, limits, choice
        self._sample_s = sample_s
        self._turns = itertools.count()
        self.counters = ReadCounters()

    def acquire(
        self,
        token: Token | None,
        *,
        asynchronous: bool,
        avoid: Collection[DatabaseServer],
        primary_only: bool = False,
    ) -> Checkout:
        """Check out a connection on which the holder of ``token`` reads nothing older than they have seen.

        Args:
            avoid: servers that failed this read already.
            primary_only: whether only the primary will do.

        Raises:
            NoReplicaError: there is none.
        """
        checkout: Checkout | None = None
        if not primary_only and (token is None or not self._is_pinned(token)):
            checkout = self._acquire_replica(token, asynchronous=asynchronous, avoid=avoid)
        if checkout is None:
            checkout = self._acquire_primary(asynchronous)
            checkout.outcome = "primary"
        self.counters.increment(checkout.outcome, checkout.server.name)
        return checkout

    def acquire_any_replica(self, *, asynchronous: bool, avoid: Collection[DatabaseServer]) -> Checkout:
        """Check out a connection to some replica, however late: for reports.

        Raises:
            NoReplicaError: none answers.
        """
        for server in self._candidates(avoid, None, late=True):
            if checkout := _try_acquire(server, asynchronous):
                return checkout
        raise NoReplicaError("no replica answers, and reports are kept off the primary: try again later")

    def _is_pinned(self, token: Token) -> bool:
        return not self._cluster.has_positions and is_pinned(token, now=time.time(), pin_s=self._limits.pin_s)

    def _acquire_replica(
        self, token: Token | None, *, asynchronous: bool, avoid: Collection[DatabaseServer]
    ) -> Checkout | None:
        token = token if self._cluster.has_positions else None
        nearest: Checkout | None = None
        try:
            for server in self._candidates(avoid, token):
                checkout = _try_acquire(server, asynchronous)
                if checkout and token is None:  # a reader without a token may read anywhere
                    return checkout
                found = _freshness(checkout, token) if checkout else Freshness.FOREIGN
                if found is Freshness.FRESH:
                    _release(nearest)
                    return checkout
                if checkout and found is Freshness.BEHIND:
                    nearest = _keep_nearer(nearest, checkout)
                else:
                    _release(checkout)
            if nearest and token and self._wait_for(nearest, token, asynchronous):
                return nearest
            return None
        except BaseException:
            _release(nearest)
            raise

    def _candidates(
        self, avoid: Collection[DatabaseServer], token: Token | None, late: bool = False
    ) -> list[DatabaseServer]:
        """The replicas that may serve, in the order of choice; first those whose last sample is fresh."""
        found = [
            server
            for server in self._replicas
            if (server.health.is_serving or self._may_try(server, late)) and server not in avoid
        ]
        if len(found) < 2:
            return found
        indices = read_order(
            [server.load for server in found],
            choice=self._choice,
            turn=next(self._turns),
            now=time.monotonic(),
            below=_random_below,
        )
        ordered = [found[index] for index in indices]
        if token is not None and self._cluster.is_sampled:
            ordered.sort(
                key=lambda server: (
                    freshness(token, server.health.last_position, asked=True) is not Freshness.FRESH
                )
            )
        return ordered

    def _may_try(self, server: DatabaseServer, late: bool) -> bool:
        """Return whether a server that is not serving gets this read all the same."""
        health = server.health
        if late and health.answers and health.breaker.is_closed:
            return True
        # Without a sampler, only a read finds out that a server is back.
        return not self._cluster.is_sampled and health.within_limits and health.breaker.wait_s == 0

    def _wait_for(self, checkout: Checkout, token: Token, asynchronous: bool) -> bool:
        """Wait until the replica is fresh; release the checkout and return False if it does not get there."""
        found, wait_s = Freshness.BEHIND, self._limits.wait_s
        if checkout.server.health.lag.seconds <= wait_s + self._sample_s:
            started = time.monotonic()
            found = _freshness(checkout, token, wait_s=wait_s)  # where the server itself cannot wait: BEHIND
            left_s = wait_s - (time.monotonic() - started)
            for pause in poll_intervals(left_s) if found is Freshness.BEHIND else ():
                if asynchronous:
                    await_only(asyncio.sleep(pause))
                else:
                    time.sleep(pause)
                if (found := _freshness(checkout, token)) is not Freshness.BEHIND:
                    break
        checkout.outcome = "waited_for_replica"
        if found is not Freshness.FRESH:
            _release(checkout)
        return found is Freshness.FRESH

    def _acquire_primary(self, asynchronous: bool) -> Checkout:
        try:
            return Checkout.acquire(self._primary, asynchronous=asynchronous)
        except DeadlineExceededError:  # some are a PoolTimeoutError, too
            raise
        except (ServerLostError, PoolTimeoutError) as error:
            busy = isinstance(error, PoolTimeoutError)
            raise NoReplicaError(
                "no replica may serve this read, and the primary "
                + ("takes no more reads at once; see primary_reads" if busy else "does not answer")
                + ": try again later"
            ) from error


def _random_below(count: int) -> int:
    """A random number; ``random.randrange`` takes three times as long for a difference without effect."""
    return int(random.random() * count)  # noqa: S311


def _try_acquire(server: DatabaseServer, asynchronous: bool) -> Checkout | None:
    try:
        return Checkout.acquire(server, asynchronous=asynchronous)
    except ServerLostError:
        server.health.record_failure()
    except DeadlineExceededError:  # some are a PoolTimeoutError, too: no time is left for another server
        raise
    except PoolTimeoutError:
        pass  # no connection is free: another replica may have one
    return None


def _freshness(checkout: Checkout, token: Token | None, *, wait_s: float = 0.0) -> Freshness:
    """As the checkout has it; FOREIGN, so that it is released, when its server is lost."""
    try:
        if token and wait_s > 0 and not checkout.wait_for(token, wait_s):
            return Freshness.BEHIND
        return checkout.freshness_for(token)
    except ServerLostError:
        checkout.server.health.record_failure()
        return Freshness.FOREIGN
    except BaseException:  # cancelled
        checkout.release()
        raise


def _release(checkout: Checkout | None) -> None:
    if checkout:
        checkout.release()


def _keep_nearer(nearest: Checkout | None, other: Checkout) -> Checkout:
    """Return the checkout that has replayed more, and release the other."""
    if nearest is None:
        return other
    further = other.position and nearest.position and other.position.position > nearest.position.position
    kept, left = (other, nearest) if further else (nearest, other)
    left.release()
    return kept
