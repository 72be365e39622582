"""The database router: writes to the primary, reads to a replica that is fresh enough for their reader.

    router = DatabaseRouter(primary_url, replica_urls)
    app.add_middleware(ConsistencyMiddleware, router=router)

    with router.write() as session:           # the primary; committed at the end of the block
        session.add(order)
    with router.read() as session:            # a replica that has replayed what this visitor wrote
        orders = session.scalars(select(Order)).all()

``async with`` gives an AsyncSession, on the same terms and of the same list of replicas.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tenfold.database.asyncpg import libpq_parameters
from tenfold.database.drivers import abandon_connections
from tenfold.database.pools import monitor_thread
from tenfold.database.pools.pool import pool_options
from tenfold.database.pools.statement_timeout import SESSION_DRIVERS
from tenfold.database.replicas.checkout import Checkout, ServerLostError
from tenfold.database.replicas.consistency import ConsistencyContext, ConsistencyTracker
from tenfold.database.replicas.engines import EngineUse, engine_factory, engine_options
from tenfold.database.replicas.fence import ReadFence, watch_checkout
from tenfold.database.replicas.freshness import FreshnessLimits
from tenfold.database.replicas.read_counters import ReadMetrics, ReadOutcome
from tenfold.database.replicas.read_routing import ReadRouting
from tenfold.database.replicas.sampler import PositionSampler, SampledServer
from tenfold.database.replicas.servers import (
    CHOICES,
    Choice,
    Cluster,
    DatabaseServer,
    HealthLimits,
    ServerHealth,
)
from tenfold.database.replicas.sessions import (
    ConnectionSource,
    ReadSession,
    SessionScope,
    WriteSession,
    with_methods,
)
from tenfold.database.urls import database_url, libpq_url, server_name
from tenfold.errors import DependencyError, SettingsError

try:
    from sqlalchemy.engine import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session
    from sqlalchemy.util.concurrency import in_greenlet
except ImportError as error:  # also without greenlet, which SQLAlchemy does not bring by itself
    raise DependencyError(
        "SQLAlchemy with its asyncio part is not installed: pip install 'tenfold[database]'"
    ) from error

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["DatabaseRouter"]

_PRIMARY_READS_TIMEOUT_S = 1.0
_SYNC_AND_ASYNC = (False, True)


class DatabaseRouter:
    """Sends writes to the primary and reads to a replica that has replayed what their reader has seen.

    What a reader has seen is a log position, remembered in the current context (a request, a task, a thread)
    and carried on by :class:`~tenfold.database.ConsistencyMiddleware`, or by hand with :meth:`token` and
    :meth:`consistency_context`. Use from any thread and any event loop, each of which has
    connections of its own. Nothing is connected before it is needed.

    Where positions do not exist (SQLite, some managed servers), reads go to the primary for ``pin_s`` after a
    write instead; this is logged once, and promises no monotonic reads.

    Args:
        primary_url: SQLAlchemy's URL, or libpq's; with several hosts the one that takes writes is found.
        replica_urls: none means that the primary serves reads too.
        keys: sign the tokens of visitors, as :class:`tenfold.signing.Signer` takes them; the same in every
            instance. Without them a visitor who comes to another instance is sent to its primary.
        freshness: waits, lifetimes, monotonic reads.
        health: the lag from which on a replica gets no reads, and the interval of samples.
        choice: ``least`` (of two by chance the less busy one), ``random`` or ``round-robin``.
        primary_reads: how many reads at once the primary takes when no replica may serve them; a bound for
            each process, so that the end of the replicas is not the end of the primary.
        class_: a subclass of Session whose methods sessions have as well, such as SQLModel's; and
        async_class: one of AsyncSession.
        options: ``{"engine": …, "session": …}``: more arguments of ``create_engine`` and ``Session``. Engines
            have monitored pools (:func:`~tenfold.database.pool_options`), whose options can be named here; a
            function of the URL returns all arguments of its engine instead, ``{"engine": lambda url: {}}``
            for SQLAlchemy's own pool.
        metrics: export metrics of pools, reads and lag to Prometheus, into ``registry`` (None: the default
            one).

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
        class_: type[Session] = Session,
        async_class: type[AsyncSession] = AsyncSession,
        options: Mapping[str, Any] | None = None,
        metrics: bool = True,
        registry: CollectorRegistry | None = None,
    ) -> None:
        _check_options(choice, primary_reads, freshness, health)
        self._token_s = freshness.token_s
        self._read_class, self._write_class = (
            with_methods(ReadSession, class_),
            with_methods(WriteSession, class_),
        )
        self._async_class = async_class
        self._options: dict[str, Any] = {"engine": {}, "session": {}, **(options or {})}
        self._pool_options = partial(pool_options, metrics=metrics, registry=registry)
        primary, *replicas = (_check_driver(database_url(url)) for url in (primary_url, *replica_urls))
        self._cluster = Cluster(
            has_positions=primary.get_backend_name() == "postgresql", has_replicas=bool(replica_urls)
        )
        self._tracker = ConsistencyTracker(keys=keys, cluster=self._cluster, limits=freshness)
        self._make_servers(primary, replicas, primary_reads)
        self._read_routing, self._report_routing = (
            ReadRouting(
                servers,
                self._primary_reads,
                cluster=self._cluster,
                limits=freshness,
                choice=choice,
                sample_s=health.sample_s,
            )
            for servers in (self._replicas, self._analytics)
        )
        self._sampler = self._make_sampler(primary, replicas, health)
        counters = self._read_routing.counters
        self._metrics = ReadMetrics(counters, self._replicas, registry=registry) if metrics else None
        self._make_sources()
        self._fence = ReadFence(
            self._tracker,
            self._cluster,
            pin_s=freshness.pin_s,
            token_s=freshness.token_s,
            acquire_primary=self._acquire_for_position,
        )
        self._pid = os.getpid()
        self._started_in = 0

    # ------------------------------------------------------------------ sessions

    def write(self) -> SessionScope:
        """A session on the primary, committed at the end of the block unless an exception ends it."""
        return SessionScope(self.get_write_session, self.get_async_write_session, commits=True)

    def read(self, *, isolation: str | None = None) -> SessionScope:
        """A session that only reads, on a replica that has replayed what this context has seen.

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

        It may be late: neither lag nor the token of this context is looked at.
        """
        return SessionScope(self._get_report_session, self._get_async_report_session, commits=False)

    def get_write_session(self) -> Session:
        """A session on the primary that its caller closes: ``with router.get_write_session() as session``."""
        session: Session = self._write_class(source=self._write_source, **self._session_options)
        return session

    def get_async_write_session(self) -> AsyncSession:
        """As :meth:`get_write_session`, for asyncio."""
        return self._async_session(self._write_class, self._async_write_source)

    def get_read_session(self, *, isolation: str | None = None) -> Session:
        """A session as :meth:`read` gives it, which its caller closes."""
        source = self._read_source if isolation is None else replace(self._read_source, isolation=isolation)
        session: Session = self._read_class(source=source, **self._session_options)
        return session

    def get_async_read_session(self, *, isolation: str | None = None) -> AsyncSession:
        """As :meth:`get_read_session`, for asyncio."""
        shared = self._async_read_source
        source = shared if isolation is None else replace(shared, isolation=isolation)
        return self._async_session(self._read_class, source)

    def _get_report_session(self) -> Session:
        session: Session = self._read_class(source=self._report_source, **self._session_options)
        return session

    def _get_async_report_session(self) -> AsyncSession:
        return self._async_session(self._read_class, self._async_report_source)

    def _async_session(self, kind: type[Session], source: ConnectionSource) -> AsyncSession:
        return self._async_class(sync_session_class=kind, source=source, **self._session_options)

    # ------------------------------------------------------------------ consistency

    def token(self) -> str | None:
        """The token of this context as short signed text, for a task's payload; None if nothing was seen."""
        return self._tracker.signed_token()

    def consistency_context(self, token: str | None = None) -> AbstractContextManager[ConsistencyContext]:
        """A context of its own for a block, which has seen ``token``: the result of :meth:`token` elsewhere.

        Text of another signer counts as nothing seen. When this router has no keys it may be another
        instance's: then only the primary will do.
        """
        return self._tracker.open_context(token)

    @property
    def token_s(self) -> float:
        """The lifetime of a token, seconds."""
        return self._token_s

    @property
    def fence(self) -> ReadFence:
        """What a :class:`~tenfold.caching.QueryCache` needs to keep nothing that is older than it seems."""
        return self._fence

    # ------------------------------------------------------------------ state, setup and end

    def servers(self) -> dict[str, dict[str, Any]]:
        """Each replica's state by its name, for a health page: whether it serves, its lag, its reads."""
        return {
            server.name: {
                "serving": server.health.is_serving,
                "lag_bytes": server.health.lag.bytes,
                "lag_s": server.health.lag.seconds,
                "in_flight": server.load.in_flight,
            }
            for server in self._replicas
        }

    def read_counts(self) -> dict[ReadOutcome, int]:
        """Reads so far by how their server was found; see ``read_counters.READ_OUTCOMES``."""
        found: Counter[ReadOutcome] = Counter()
        for (outcome, _), count in self._read_routing.counters.counts().items():
            found[outcome] += count
        return dict(found)

    def configure_engines(self, setup: Callable[[Engine], object]) -> None:
        """Call ``setup`` with every engine when it is made: listeners, or ``enforce_deadlines``.

        Call it before the router is used. For asyncio it gets the synchronous engine inside.
        """
        self._cluster.engine_setups.append(setup)

    def close(self) -> None:
        """Stop sampling and close what is idle in the pools. In asyncio: ``await router.aclose()``."""
        self._started_in = 0  # the next use starts it again
        if self._sampler:
            self._sampler.stop()
        for loop, engine in self._discard_engines():
            _dispose(engine, loop)

    async def aclose(self) -> None:
        """As :meth:`close`, for a router that was used in asyncio."""
        from sqlalchemy.util import greenlet_spawn

        await greenlet_spawn(self.close)

    def _discard_engines(self) -> list[tuple[asyncio.AbstractEventLoop | None, Any]]:
        servers = (self._primary, self._primary_reads, *self._replicas, *self._analytics)
        return [item for server in dict.fromkeys(servers) for item in server.discard_engines().items()]

    # ------------------------------------------------------------------ servers

    def _make_servers(self, primary: URL, replicas: Sequence[URL], primary_reads: int) -> None:
        bounded = {"pool_size": primary_reads, "max_overflow": 0, "pool_timeout": _PRIMARY_READS_TIMEOUT_S}
        limit = bounded if replicas and primary.get_backend_name() == "postgresql" else {}
        health = ServerHealth()
        self._primary = self._make_server(primary, "write", health, is_primary=True)
        self._primary_reads = self._make_server(primary, "read", health, is_primary=True, **limit)
        healths = [ServerHealth() for _ in replicas]
        uses: list[EngineUse] = ["read", "analytics"]
        self._replicas, self._analytics = (
            [self._make_server(url, use, health) for url, health in zip(replicas, healths, strict=True)]
            for use in uses
        )

    def _make_server(
        self, url: URL, use: EngineUse, health: ServerHealth, *, is_primary: bool = False, **options: Any
    ) -> DatabaseServer:
        chosen = self._options["engine"]
        if not callable(chosen):
            chosen = {**chosen, **options}
        engine = engine_options(url, use, chosen, make_pool_options=self._pool_options)
        return DatabaseServer(
            server_name(url),
            is_primary=is_primary,
            cluster=self._cluster,
            health=health,
            make_engine=engine_factory(url, use, is_primary=is_primary, options={**engine, **options}),
        )

    def _make_sampler(
        self, primary: URL, replicas: Sequence[URL], limits: HealthLimits
    ) -> PositionSampler | None:
        if not replicas or not self._cluster.has_positions or limits.sample_s <= 0:
            return None
        targets = [SampledServer(self._primary.name, _sampler_url(primary), True, self._primary.health)]
        targets += [
            SampledServer(server.name, _sampler_url(url), False, server.health, dependents=(server,))
            for url, server in zip(replicas, self._replicas, strict=True)
        ]
        self._cluster.is_sampled = True
        return PositionSampler(targets, cluster=self._cluster, limits=limits)

    # ------------------------------------------------------------------ connections for sessions

    def _make_sources(self) -> None:
        """Make them once: otherwise each session would make its own."""
        self._session_options: dict[str, Any] = dict(self._options["session"])
        self._read_source, self._async_read_source = (
            ConnectionSource(partial(self._acquire_for_read, asynchronous), self._tracker.record_read)
            for asynchronous in _SYNC_AND_ASYNC
        )
        self._report_source, self._async_report_source = (
            ConnectionSource(partial(self._acquire_for_report, asynchronous), _record_nothing)
            for asynchronous in _SYNC_AND_ASYNC
        )
        self._write_source, self._async_write_source = (
            ConnectionSource(partial(self._acquire_for_write, asynchronous), self._tracker.record_write)
            for asynchronous in _SYNC_AND_ASYNC
        )

    def _acquire_for_write(self, asynchronous: bool, *_: object) -> Checkout:
        if os.getpid() != self._started_in:
            self._start()
        try:
            return watch_checkout(Checkout.acquire(self._primary, asynchronous=asynchronous))
        except ServerLostError as error:
            assert error.__cause__ is not None
            raise error.__cause__ from None

    def _acquire_for_read(
        self, asynchronous: bool, avoid: frozenset[DatabaseServer], primary_only: bool
    ) -> Checkout:
        if os.getpid() != self._started_in:
            self._start()
        token = self._tracker.token()
        return watch_checkout(
            self._read_routing.acquire(
                token, asynchronous=asynchronous, avoid=avoid, primary_only=primary_only
            )
        )

    def _acquire_for_report(self, asynchronous: bool, avoid: frozenset[DatabaseServer], _: bool) -> Checkout:
        if os.getpid() != self._started_in:
            self._start()
        return watch_checkout(
            self._report_routing.acquire_any_replica(asynchronous=asynchronous, avoid=avoid)
        )

    def _acquire_for_position(self, asynchronous: bool) -> Checkout:
        if os.getpid() != self._started_in:
            self._start()
        return Checkout.acquire(self._primary_reads, asynchronous=asynchronous)

    def _start(self) -> None:
        """Start before the first use in a process: a fork has neither the sampling thread nor connections."""
        if (pid := os.getpid()) != self._pid:
            self._pid = pid
            for _, engine in self._discard_engines():
                engine.dispose(close=False)
        if self._sampler:
            self._sampler.start()
        if self._metrics:
            monitor_thread.register(self._metrics)
        self._started_in = pid


def _sampler_url(url: URL) -> str:
    """The URL for the sampler's own connection, which is psycopg's."""
    address, mark, query = libpq_url(url.set(query=libpq_parameters(url.query))).partition("?")
    return address + mark + query.replace("+", "%20")  # for libpq a plus is no blank


def _dispose(engine: Any, loop: asyncio.AbstractEventLoop | None) -> None:
    if loop is None or (in_greenlet() and loop is asyncio.get_running_loop()):
        engine.dispose()
    elif loop.is_running():  # in another thread
        loop.call_soon_threadsafe(abandon_connections, engine)
    else:
        abandon_connections(engine)


def _record_nothing(_: Checkout, __: bool) -> None:
    """A report may be late anyway: it does not move the token."""


def _check_driver(url: URL) -> URL:
    if url.get_backend_name() == "postgresql" and url.get_driver_name() not in SESSION_DRIVERS:
        raise SettingsError(
            f"DatabaseRouter does not work with {url.get_driver_name()}: write postgresql+psycopg:// in the "
            "URL, or postgresql+psycopg2:// or postgresql+asyncpg://"
        )
    return url


def _check_options(choice: str, primary_reads: int, freshness: FreshnessLimits, health: HealthLimits) -> None:
    if choice not in CHOICES:
        raise SettingsError(f"choice is {choice!r}: take one of {', '.join(CHOICES)}")
    if primary_reads < 1:
        raise SettingsError(
            "primary_reads is less than 1: the primary has to serve reads when no replica can"
        )
    if freshness.token_s <= health.max_lag_s:
        raise SettingsError(
            f"token_s is {freshness.token_s:g} but max_lag_s is {health.max_lag_s:g}: a token has to outlive "
            "the lag with which a replica may serve"
        )
