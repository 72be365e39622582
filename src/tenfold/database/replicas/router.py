"""Primary and replicas behind one object: who wrote reads what they wrote, everybody else reads anywhere.

    router = DatabaseRouter(primary_url, replica_urls)
    app.add_middleware(ConsistencyMiddleware, router=router)

    with router.write() as session:           # the primary; committed at the end of the block
        session.add(order)
    with router.read() as session:            # a replica that has seen what this visitor wrote
        orders = session.scalars(select(Order)).all()

``async with`` gives an AsyncSession, on the same terms and of the same list of replicas.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tenfold.database.pools import monitor_thread
from tenfold.database.pools.pool import pool_options
from tenfold.database.replicas.checkout import Lease, ServerLostError
from tenfold.database.replicas.consistency import Memory, Seen
from tenfold.database.replicas.engines import Use, maker, pooled
from tenfold.database.replicas.freshness import FreshnessLimits
from tenfold.database.replicas.read_counters import How, ReadFigures
from tenfold.database.replicas.read_routing import Finder
from tenfold.database.replicas.sampler import Sampled, Sampler
from tenfold.database.replicas.servers import CHOICES, Choice, Cluster, Health, HealthLimits, Member
from tenfold.database.replicas.sessions import Errand, ReadSession, SessionScope, WriteSession
from tenfold.database.urls import database_url, libpq_url, server_name
from tenfold.errors import DependencyError, SettingsError

try:
    from sqlalchemy.engine import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session
except ImportError as error:  # also without greenlet, which SQLAlchemy does not bring by itself
    raise DependencyError(
        "SQLAlchemy with its asyncio part is not installed: pip install 'tenfold[database]'"
    ) from error

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["DatabaseRouter"]

_PRIMARY_READS_TIMEOUT_S = 1.0
_BOTH = (False, True)  # asynchronous or not


class DatabaseRouter:
    """Sends writes to the primary and reads to a replica that has seen what their reader has seen.

    What a reader has seen is a log position, remembered in the current context (a request, a task, a thread)
    and carried on by :class:`~tenfold.database.ConsistencyMiddleware`, or by hand with :meth:`token` and
    :meth:`seen`. Use from any thread and any event loop. Nothing is connected before it is needed.

    Where positions do not exist (SQLite, some managed servers), reads go to the primary for ``pin_s`` after a
    write instead; this is logged once, and promises no monotonic reads.

    Args:
        primary_url: SQLAlchemy's URL, or libpq's; with several hosts the one that takes writes is found.
        replica_urls: none means that the primary serves reads too.
        keys: sign what visitors carry, as :class:`tenfold.signing.Signer` takes them; the same in every
            instance. Without them a visitor who comes to another instance is sent to its primary.
        freshness: waits, lifetimes, monotonic reads.
        health: from which lag on a replica gets no reads, and how often all are sampled.
        choice: ``least`` (of two by chance the less busy one), ``random`` or ``round-robin``.
        primary_reads: how many reads at once the primary takes when no replica may serve them; a bound for
            each process, so that the end of the replicas is not the end of the primary.
        options: ``{"engine": …, "session": …}``: more arguments of ``create_engine`` and ``Session``. Engines
            have watched pools (:func:`~tenfold.database.pool_options`), whose sizes and so on can be named
            here; a function of the URL returns all arguments of its engine instead, ``{"engine": lambda url:
            {}}`` for SQLAlchemy's own pool.
        metrics: export to Prometheus, into ``registry`` (None: the default one), what the pools do, how reads
            find their server, and how late the replicas are.

    Raises:
        DependencyError: metrics are wanted and prometheus-client is not installed.
        SettingsError: an argument cannot be accepted.
    """

    def __init__(  # noqa: PLR0913 - one place for every option of a router
        self,
        primary_url: str | URL,
        replica_urls: Sequence[str | URL] = (),
        *,
        keys: Sequence[str | bytes] | str | bytes | None = None,
        freshness: FreshnessLimits = FreshnessLimits(),  # noqa: B008 - frozen
        health: HealthLimits = HealthLimits(),  # noqa: B008 - frozen
        choice: Choice = "least",
        primary_reads: int = 10,
        options: Mapping[str, Any] | None = None,
        metrics: bool = True,
        registry: CollectorRegistry | None = None,
    ) -> None:
        _check(choice, primary_reads, freshness, health)
        self._token_s = freshness.token_s
        self._options: dict[str, Any] = {"engine": {}, "session": {}, **(options or {})}
        self._pools = partial(pool_options, metrics=metrics, registry=registry)
        primary = database_url(primary_url)
        self._cluster = Cluster(
            positions=primary.get_backend_name() == "postgresql", replicated=bool(replica_urls)
        )
        self._memory = Memory(keys=keys, cluster=self._cluster, limits=freshness)
        replicas = [database_url(url) for url in replica_urls]
        self._make_servers(primary, replicas, primary_reads)
        self._finder, self._reports = (
            Finder(
                replicas_of_use,
                self._primary_reads,
                cluster=self._cluster,
                limits=freshness,
                choice=choice,
                sample_s=health.sample_s,
            )
            for replicas_of_use in (self._replicas, self._analytics)
        )
        self._sampler = self._make_sampler(primary, replicas, health)
        tally = self._finder.tally
        self._figures = ReadFigures(tally, self._replicas, registry=registry) if metrics else None
        self._make_errands()
        self._pid = os.getpid()
        self._begun_in = 0

    # Sessions

    def write(self) -> SessionScope:
        """A session on the primary, committed at the end of the block unless an exception ends it."""
        return SessionScope(self.get_write_session, self.get_async_write_session, commits=True)

    def read(self, *, isolation: str | None = None) -> SessionScope:
        """A session that only reads, on a replica that has seen what this context has seen.

        Each statement has a snapshot of its own, and one whose server is lost is repeated on another.
        ``isolation="REPEATABLE READ"`` gives all of them one snapshot, in one transaction, not repeated.
        """
        if isolation is None:
            return SessionScope(self.get_read_session, self.get_async_read_session, commits=False)
        return SessionScope(
            partial(self.get_read_session, isolation=isolation),
            partial(self.get_async_read_session, isolation=isolation),
            commits=False,
        )

    def analytics(self) -> SessionScope:
        """A session for reports: only ever on a replica, in a pool of its own, without a statement timeout.

        It may be late: neither lag nor what this context has seen is looked at.
        """
        return SessionScope(self._get_report_session, self._get_async_report_session, commits=False)

    def get_write_session(self) -> Session:
        """A session on the primary, for whoever closes it: ``with router.get_write_session() as session``."""
        return WriteSession(errand=self._writing, **self._of_sessions)

    def get_async_write_session(self) -> AsyncSession:
        """As :meth:`get_write_session`, for asyncio."""
        return _asynchronous(WriteSession, self._async_writing, self._of_sessions)

    def get_read_session(self, *, isolation: str | None = None) -> Session:
        """A session as :meth:`read` gives it, for whoever closes it."""
        errand = self._reading if isolation is None else replace(self._reading, isolation=isolation)
        return ReadSession(errand=errand, **self._of_sessions)

    def get_async_read_session(self, *, isolation: str | None = None) -> AsyncSession:
        """As :meth:`get_read_session`, for asyncio."""
        own = self._async_reading
        errand = own if isolation is None else replace(own, isolation=isolation)
        return _asynchronous(ReadSession, errand, self._of_sessions)

    def _get_report_session(self) -> Session:
        return ReadSession(errand=self._reporting, **self._of_sessions)

    def _get_async_report_session(self) -> AsyncSession:
        return _asynchronous(ReadSession, self._async_reporting, self._of_sessions)

    def each_engine(self, setup: Callable[[Engine], object]) -> None:
        """Calls ``setup`` with every engine when it is made: listeners, or ``enforce_deadlines``.

        Call it before the router is used. For asyncio it gets the synchronous engine inside.
        """
        self._cluster.setups.append(setup)

    # What was seen

    def token(self) -> str | None:
        """What this context has seen, as short signed text for a task's payload; None when it is nothing."""
        return self._memory.signed(self._memory.token())

    def seen(self, token: str | None = None) -> AbstractContextManager[Seen]:
        """A context of its own, for a block, that has seen ``token``: what :meth:`token` gave elsewhere.

        Text that is none of ours counts as nothing seen. When this router has no keys it may be another
        instance's: then only the primary will do.
        """
        return self._memory.opened(token)

    @property
    def token_s(self) -> float:
        """How long what was seen is remembered, seconds."""
        return self._token_s

    # Servers

    def servers(self) -> dict[str, dict[str, Any]]:
        """Each replica's state by its name, for a health page: whether it serves, its lag, its reads."""
        return {
            server.name: {
                "serving": server.health.serving,
                "lag_bytes": server.health.lag.bytes,
                "lag_s": server.health.lag.seconds,
                "in_flight": server.load.in_flight,
            }
            for server in self._replicas
        }

    def reads(self) -> dict[How, int]:
        """How reads found their server so far, by the words of ``read_counters.HOW``."""
        found: Counter[How] = Counter()
        for (how, _), count in self._finder.tally.counts().items():
            found[how] += count
        return dict(found)

    def close(self) -> None:
        """Stop sampling and close what is idle in the pools. In asyncio: ``await router.aclose()``."""
        self._begun_in = 0  # whoever uses it again samples again
        if self._sampler:
            self._sampler.stop()
        for engine in self._forgotten():
            engine.dispose()

    async def aclose(self) -> None:
        """As :meth:`close`, for a router that was used in asyncio."""
        from sqlalchemy.util import greenlet_spawn

        await greenlet_spawn(self.close)

    def _forgotten(self) -> list[Any]:
        every = (self._primary, self._primary_reads, *self._replicas, *self._analytics)
        return [engine for server in dict.fromkeys(every) for engine in server.forget_engines()]

    def _make_servers(self, primary: URL, replicas: Sequence[URL], primary_reads: int) -> None:
        bounded = {"pool_size": primary_reads, "max_overflow": 0, "pool_timeout": _PRIMARY_READS_TIMEOUT_S}
        limit = bounded if replicas and primary.get_backend_name() == "postgresql" else {}
        truth = Health()
        self._primary = self._server(primary, "write", truth)
        self._primary_reads = self._server(primary, "read", truth, primary=True, **limit)
        healths = [Health() for _ in replicas]
        uses: list[Use] = ["read", "analytics"]
        self._replicas, self._analytics = (
            [self._server(url, use, health) for url, health in zip(replicas, healths, strict=True)]
            for use in uses
        )

    def _server(self, url: URL, use: Use, health: Health, *, primary: bool = False, **options: Any) -> Member:
        primary = primary or use == "write"
        chosen = self._options["engine"]
        engine = pooled(url, use, chosen if callable(chosen) else {**chosen, **options}, watched=self._pools)
        make = maker(url, use, primary=primary, options={**engine, **options})
        return Member(server_name(url), primary=primary, cluster=self._cluster, health=health, make=make)

    def _make_sampler(self, primary: URL, replicas: Sequence[URL], limits: HealthLimits) -> Sampler | None:
        if not replicas or not self._cluster.positions or limits.sample_s <= 0:
            return None
        targets = [Sampled(self._primary.name, libpq_url(primary), True, self._primary.health)]
        targets += [
            Sampled(server.name, libpq_url(url), False, server.health, cuts=(server,))
            for url, server in zip(replicas, self._replicas, strict=True)
        ]
        self._cluster.sampled = True
        return Sampler(targets, cluster=self._cluster, limits=limits)

    # What sessions ask for

    def _make_errands(self) -> None:
        """Once: each session would otherwise make its own."""
        self._of_sessions: dict[str, Any] = dict(self._options["session"])
        self._reading, self._async_reading = (
            Errand(partial(self._find, asynchronous), self._memory.after_read) for asynchronous in _BOTH
        )
        self._reporting, self._async_reporting = (
            Errand(partial(self._report, asynchronous), _nothing) for asynchronous in _BOTH
        )
        self._writing, self._async_writing = (
            Errand(partial(self._take, asynchronous), self._memory.after_write) for asynchronous in _BOTH
        )

    def _take(self, asynchronous: bool, *_: object) -> Lease:
        if os.getpid() != self._begun_in:
            self._begin()
        try:
            return Lease.take(self._primary, asynchronous=asynchronous)
        except ServerLostError as error:
            assert error.__cause__ is not None
            raise error.__cause__ from None

    def _find(self, asynchronous: bool, avoid: frozenset[Member], primary: bool) -> Lease:
        if os.getpid() != self._begun_in:
            self._begin()
        token = self._memory.token()
        return self._finder.find(token, asynchronous=asynchronous, avoid=avoid, primary=primary)

    def _report(self, asynchronous: bool, avoid: frozenset[Member], _: bool) -> Lease:
        if os.getpid() != self._begun_in:
            self._begin()
        return self._reports.any_replica(asynchronous=asynchronous, avoid=avoid)

    def _begin(self) -> None:
        """Before the first use in a process: a fork has neither the sampling thread nor connections."""
        if (pid := os.getpid()) != self._pid:
            self._pid = pid
            for engine in self._forgotten():
                engine.dispose(close=False)
        if self._sampler:
            self._sampler.start()
        if self._figures:
            monitor_thread.add(self._figures)
        self._begun_in = pid


def _asynchronous(kind: type[Session], errand: Errand, options: Mapping[str, Any]) -> AsyncSession:
    return AsyncSession(sync_session_class=kind, errand=errand, **options)


def _nothing(_: Lease, __: bool) -> None:
    """A report is late anyway: what it has shown is nobody's business."""


def _check(choice: str, primary_reads: int, freshness: FreshnessLimits, health: HealthLimits) -> None:
    if choice not in CHOICES:
        raise SettingsError(f"choice is {choice!r}: take one of {', '.join(CHOICES)}")
    if primary_reads < 1:
        raise SettingsError("primary_reads is less than 1: somebody has to serve reads when no replica can")
    if freshness.token_s <= health.max_lag_s:
        raise SettingsError(
            f"token_s is {freshness.token_s:g} but max_lag_s is {health.max_lag_s:g}: a token has to outlive "
            "the lag with which a replica may serve"
        )
