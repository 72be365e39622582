"""Finds the server that serves a read: the decisions are those of choice, health and freshness."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Collection, Sequence

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.util import await_only

from tenfold.database.replicas import servers
from tenfold.database.replicas.checkout import Lease, ServerLostError
from tenfold.database.replicas.freshness import FreshnessLimits, Verdict, judge, pauses, pinned
from tenfold.database.replicas.read_counters import Tally
from tenfold.database.replicas.servers import Choice, Cluster, Member
from tenfold.errors import DeadlineExceededError, NoReplicaError
from tenfold.positions import Token

__all__ = ["Finder"]


class Finder:
    """Connections for reads, checked against what their reader has seen. Thread-safe.

    Args:
        replicas: where reads go; when none of them may serve, ``primary`` does.
        sample_s: a replica that lags by more than this and the wait is not waited for.
    """

    def __init__(
        self,
        replicas: Sequence[Member],
        primary: Member,
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
        self.tally = Tally()

    def find(
        self, token: Token | None, *, asynchronous: bool, avoid: Collection[Member], primary: bool = False
    ) -> Lease:
        """A connection on which the holder of ``token`` reads nothing older than what they have seen.

        Args:
            avoid: servers that failed this read already.
            primary: whether only the primary will do.

        Raises:
            NoReplicaError: there is none.
        """
        lease: Lease | None = None
        if not primary and (token is None or not self._only_primary(token)):
            lease = self._of_replicas(token, asynchronous=asynchronous, avoid=avoid)
        if lease is None:
            lease = self._of_primary(asynchronous)
            lease.how = "primary"
        self.tally.add(lease.how, lease.server.name)
        return lease

    def any_replica(self, *, asynchronous: bool, avoid: Collection[Member]) -> Lease:
        """A connection to some replica, however late: for reports.

        Raises:
            NoReplicaError: none answers.
        """
        for server in self._in_order(avoid, None, late=True):
            if lease := _taken(server, asynchronous):
                return lease
        raise NoReplicaError("no replica answers, and reports are kept off the primary: try again later")

    def _only_primary(self, token: Token) -> bool:
        return not self._cluster.positions and pinned(token, now=time.time(), pin_s=self._limits.pin_s)

    def _of_replicas(
        self, token: Token | None, *, asynchronous: bool, avoid: Collection[Member]
    ) -> Lease | None:
        token = token if self._cluster.positions else None
        nearest: Lease | None = None
        try:
            for server in self._in_order(avoid, token):
                lease = _taken(server, asynchronous)
                if lease and token is None:  # who has seen nothing may read anywhere
                    return lease
                verdict = _verdict(lease, token) if lease else Verdict.FOREIGN
                if verdict is Verdict.FRESH:
                    _give_back(nearest)
                    return lease
                if lease and verdict is Verdict.BEHIND:
                    nearest = _nearer(nearest, lease)
                else:
                    _give_back(lease)
            if nearest and token and self._catches_up(nearest, token, asynchronous):
                return nearest
            return None
        except BaseException:
            _give_back(nearest)
            raise

    def _in_order(self, avoid: Collection[Member], token: Token | None, late: bool = False) -> list[Member]:
        """Those that serve, in the order of choice; first those that were heard to be far enough."""
        found = [
            server
            for server in self._replicas
            if (server.health.serving or self._may_try(server, late)) and server not in avoid
        ]
        if len(found) < 2:
            return found
        indices = servers.order(
            [server.load for server in found],
            choice=self._choice,
            turn=next(self._turns),
            now=time.monotonic(),
            below=_below,
        )
        ordered = [found[index] for index in indices]
        if token is not None and self._cluster.sampled:
            ordered.sort(
                key=lambda server: judge(token, server.health.place, asked=True) is not Verdict.FRESH
            )
        return ordered

    def _may_try(self, server: Member, late: bool) -> bool:
        """Whether one that does not serve gets this read all the same."""
        health = server.health
        if late and health.answers and health.breaker.is_closed:
            return True
        # Where nobody samples, a read is what finds out whether it is back.
        return not self._cluster.sampled and health.in_time and health.breaker.wait_s == 0

    def _catches_up(self, lease: Lease, token: Token, asynchronous: bool) -> bool:
        """Whether it does soon; given back when it does not."""
        verdict, wait_s = Verdict.BEHIND, self._limits.wait_s
        if lease.server.health.lag.seconds <= wait_s + self._sample_s:
            begun = time.monotonic()
            verdict = _verdict(lease, token, wait_s=wait_s)  # where the server itself cannot wait: BEHIND
            left_s = wait_s - (time.monotonic() - begun)
            for pause in pauses(left_s) if verdict is Verdict.BEHIND else ():
                if asynchronous:
                    await_only(asyncio.sleep(pause))
                else:
                    time.sleep(pause)
                if (verdict := _verdict(lease, token)) is not Verdict.BEHIND:
                    break
        lease.how = "waited"
        if verdict is not Verdict.FRESH:
            _give_back(lease)
        return verdict is Verdict.FRESH

    def _of_primary(self, asynchronous: bool) -> Lease:
        try:
            return Lease.take(self._primary, asynchronous=asynchronous)
        except DeadlineExceededError:  # some are a PoolTimeoutError, too
            raise
        except (ServerLostError, PoolTimeoutError) as error:
            busy = isinstance(error, PoolTimeoutError)
            raise NoReplicaError(
                "no replica may serve this read, and the primary "
                + ("takes no more reads at once; see primary_reads" if busy else "does not answer")
                + ": try again later"
            ) from error


def _below(count: int) -> int:
    """One of so many, by chance; ``random.randrange`` takes three times as long for what nobody would see."""
    return int(random.random() * count)  # noqa: S311


def _taken(server: Member, asynchronous: bool) -> Lease | None:
    try:
        return Lease.take(server, asynchronous=asynchronous)
    except ServerLostError:
        server.health.failed()
    except DeadlineExceededError:  # some are a PoolTimeoutError, too: no time is left for another server
        raise
    except PoolTimeoutError:
        pass  # no connection is free: another replica may have one
    return None


def _verdict(lease: Lease, token: Token | None, *, wait_s: float = 0.0) -> Verdict:
    """What to do with it; FOREIGN, so that it is let go of, when its server is lost."""
    try:
        if token and wait_s > 0 and not lease.wait(token, wait_s):
            return Verdict.BEHIND
        return lease.fresh_for(token)
    except ServerLostError:
        lease.server.health.failed()
        return Verdict.FOREIGN
    except BaseException:  # cancelled
        lease.give_back()
        raise


def _give_back(lease: Lease | None) -> None:
    if lease:
        lease.give_back()


def _nearer(nearest: Lease | None, other: Lease) -> Lease:
    """The one that has replayed more; the other goes back."""
    if nearest is None:
        return other
    further = other.place and nearest.place and other.place.position > nearest.place.position
    kept, left = (other, nearest) if further else (nearest, other)
    left.give_back()
    return kept
