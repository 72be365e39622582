"""The query cache: results of functions that read a database, in memory and in Redis.

cache = QueryCache(redis_url, vary=current_tenant)        # QueryCache() alone is memory only

@cache.query(ttl=600, tags=["products"])
def popular_products(session: Session, *, limit: int = 100) -> list[ProductOut]: ...

cache.invalidate("products", session=session)             # after this session's commit
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tenfold.caching.core import Call, Core
from tenfold.caching.counts import Counts
from tenfold.caching.drivers import AsyncDriver, SyncDriver
from tenfold.caching.entry import Serving, Tag, check_tag, encodable
from tenfold.caching.fence import Fence
from tenfold.caching.function import (
    MAX_TTL,
    CachedFunction,
    QueryOptions,
    check_function,
    check_ttl,
    plain_function,
)
from tenfold.caching.keys import UnkeyableError, encode_key, shorten
from tenfold.caching.lookup import invalidate, look_up, send_pending
from tenfold.caching.memory import MemoryTier
from tenfold.caching.stores import LocalStore, RedisStore, new_generation
from tenfold.caching.values import UnstorableError
from tenfold.errors import DependencyError, SettingsError
from tenfold.reads import PERSONAL

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["QueryCache"]

P = ParamSpec("P")
R = TypeVar("R")


class Invalidation:
    """The tags that a transaction invalidates, and their new generations; called after its commit."""

    def __init__(self, cache: QueryCache, session: Any) -> None:
        self._cache, self._session = cache, session
        self.generations: dict[str, bytes] = {}

    def __call__(self) -> None:
        self._cache.renew_committed(self.generations, self._session)


class QueryCache:
    """Results of functions, by their arguments, shared by all instances of a service.

    What is served is never another tenant's, never a broken value, and never older than: for readers with a
    position (``fence``), what they have seen; for others, ``ttl`` seconds, and with tags the time between a
    commit and its invalidation, plus one second where an instance was cut off from Redis. An invalidation
    that Redis did not take is repeated once it does; one whose process dies before is lost, unless there is a
    ``durable`` log of them. When Redis is down, functions are called directly, never an error raised.

    Args:
        redis: a URL (``redis://``, ``rediss://``, ``unix://``, ``redis+cluster://``, ``redis+sentinel://``),
            or a client of redis-py without ``decode_responses``; None keeps everything in this process.
        vary: what results depend on besides arguments, such as the tenant, user or locale: called for each
            lookup; its value becomes a part of the key.
        fence: ``router.fence`` of a DatabaseRouter, where loads may read from replicas.
        session_factory: makes sessions for background refreshes; a block with ``with``, or ``async with`` for
            functions that are async.
        prefix: of all keys in Redis; one for each schema of data.
        memory_bytes: of the tier in this process; 0 switches it off.
        max_value_bytes: larger values are returned, not stored.
        durable: URL or Engine of the PostgreSQL primary, for a log of invalidations there: see
            :class:`~tenfold.caching.InvalidationLog`. A value is stale for at most 2 s then.
        shadow: the share of hits that are loaded as well, and compared; for ``stale`` in the counts.
        derive_tags: invalidate the tables that sessions of this process write. About 5 µs a statement.
        debug: raise where a load reads the current user outside of ``vary``.
        timeout_s: for a call to Redis.
        direct_loads: how many loads go past the cache at once while Redis is down.
        metrics: export metrics to Prometheus, into ``registry`` (None: the default one).

    Raises:
        SettingsError: an argument cannot be accepted.
        DependencyError: redis-py or prometheus-client is missing.
    """

    def __init__(  # noqa: PLR0913 - one place for every option of a cache
        self,
        redis: Any = None,
        *,
        vary: Callable[[], Any] | None = None,
        fence: Fence | None = None,
        session_factory: Callable[[], Any] | None = None,
        prefix: str = "tenfold:cache:",
        memory_bytes: int = 64 * 1024 * 1024,
        max_value_bytes: int = 1_000_000,
        durable: Any = None,
        shadow: float = 0.0,
        derive_tags: bool = True,
        debug: bool = False,
        timeout_s: float = 0.1,
        direct_loads: int = 32,
        metrics: bool = True,
        registry: CollectorRegistry | None = None,
    ) -> None:
        if not 0 <= shadow <= 1:
            raise SettingsError(f"shadow is {shadow}: it is a share of hits, from 0 to 1")
        if not prefix or not prefix.isascii() or not prefix.isprintable() or " " in prefix:
            raise SettingsError(f"prefix is {prefix!r}: write printable ASCII without blanks")
        if redis is None and durable is not None:
            raise SettingsError("a durable log of invalidations needs Redis: give QueryCache a URL")
        if redis is None and not memory_bytes:
            raise SettingsError("memory_bytes is 0, and there is no Redis: nothing could be kept")
        self._vary, self._session_factory = vary, session_factory
        self._derives_tags, self._max_value_bytes = derive_tags, max_value_bytes
        self._functions: dict[str, CachedFunction] = {}
        counts = Counts(metrics=metrics, registry=registry)
        self._listener: Any = None
        if redis is None:
            memory = MemoryTier(max_bytes=memory_bytes)
            core = Core(LocalStore(memory), memory, counts)
        else:
            core = self._use_redis(redis, prefix, memory_bytes, timeout_s, counts, durable is not None)
        core.fence, core.debug, core.shadow = fence, debug, shadow
        self._core, self._pid = core, os.getpid()
        self._sync, self._async = SyncDriver(core, direct_loads), AsyncDriver(core, direct_loads)
        core.refresh_with = self._refresh
        self._log: Any = None
        if durable is not None:
            from tenfold.caching.durable import InvalidationLog

            self._log = InvalidationLog(durable)
            self._log.attach(core, key=self, run=self._sync.run)
        if derive_tags:
            with contextlib.suppress(DependencyError):
                from tenfold.caching.sqlalchemy import on_written_tables

                on_written_tables(self)

    def _use_redis(
        self, redis: Any, prefix: str, memory_bytes: int, timeout_s: float, counts: Counts, is_durable: bool
    ) -> Core:
        from tenfold.caching.listener import MAX_STALE_S, Listener
        from tenfold.caching.redis import RedisServer

        server = RedisServer(redis, timeout_s=timeout_s)
        store = RedisStore(prefix, tag_ttl=MAX_TTL * 1.1, is_cluster=server.is_cluster, is_durable=is_durable)
        memory = MemoryTier(max_bytes=memory_bytes, max_stale_s=MAX_STALE_S)
        if memory_bytes and server.has_url:
            flush = functools.partial(counts.flush, prefix)
            self._listener = Listener(memory, store, server.connect_listener, flush, self._send_pending)
        return Core(store, memory, counts, server=server, is_durable=is_durable)

    def _send_pending(self) -> None:
        if self._core.pending:
            self._sync.run(send_pending(self._core))

    def _refresh(self, call: Call) -> None:
        (self._async if call.function.is_async else self._sync).refresh(call)

    # ------------------------------------------------------------------ functions

    def query(  # noqa: PLR0913 - one place for what can be said of a function
        self,
        ttl: float = 300.0,
        tags: Sequence[str] | None = None,
        *,
        key: Callable[..., Any] | None = None,
        ignore: Collection[str] = (),
        returns: Any = None,
        name: str | None = None,
        frozen: bool = False,
        negative_ttl: float | None = None,
        session_factory: Callable[[], Any] | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Cache what a function returns, by its arguments. Sync and async functions; the signature is kept.

        Args:
            ttl: seconds; up to a tenth less, so that what was stored together does not expire together.
            tags: what invalidates it; ``product:{product_id}`` takes parameters. None takes the tables that
                its loads read with SQLAlchemy, after the first load; ``()`` keeps it for its ttl whatever is
                written.
            key: makes the key of a call from the same arguments, instead of the signature.
            ignore: parameters that are no part of the key. Sessions, connections, requests and responses are
                none anyway.
            returns: the type of the values, if not that of the return annotation.
            name: instead of module and qualified name; needed for closures made by one function.
            frozen: callers share one decoded value, whose type has to be immutable.
            negative_ttl: seconds for None; at most 30 by default.
            session_factory: see the cache's.

        Raises:
            SettingsError: an argument, a parameter, or the return type cannot be accepted; names the
                function.
        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            check_function(function)
            title = name or f"{function.__module__}.{function.__qualname__}"
            if isinstance(tags, str):
                raise SettingsError(f"the tags of {title} are one text: write tags=[{tags!r}]")
            options = QueryOptions(
                ttl=ttl,
                tags=tags if tags is not None or self._derives_tags else (),
                key=key,
                ignore=ignore,
                returns=returns,
                negative_ttl=negative_ttl,
                frozen=frozen,
                session_factory=session_factory or self._session_factory,
                names=sys._getframe(1).f_locals,  # of a function that is defined in another
            )
            cached = CachedFunction(function, title, options, max_value_bytes=self._max_value_bytes)
            self._register(cached)
            wrapped: Callable[P, R] = self._wrap(cached)
            return wrapped

        return decorate

    def _register(self, cached: CachedFunction) -> None:
        former = self._functions.get(cached.name)
        if former is not None:
            code, other = cached.function.__code__, former.function.__code__
            same = (code.co_filename, code.co_firstlineno) == (other.co_filename, other.co_firstlineno)
            if code.co_freevars or not same or "<lambda>" in cached.name:
                raise SettingsError(
                    f"another function is cached as {cached.name}: give one of them a name=, because both "
                    "would have the same keys"
                )
        self._functions[cached.name] = cached
        self._core.pending.functions.add(cached.name)

    def _wrap(self, cached: CachedFunction) -> Any:
        function = cached.function
        wrapper: Any
        if cached.is_async:

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                if (call := self._find_call(cached, args, kwargs)) is None:
                    return await function(*args, **kwargs)
                return await self._answer_async(call)

            wrapper = call_async
        else:

            @functools.wraps(function)
            def call_sync(*args: Any, **kwargs: Any) -> Any:
                if (call := self._find_call(cached, args, kwargs)) is None:
                    return function(*args, **kwargs)
                return self._answer(call)

            wrapper = call_sync
        cached.show_signature(wrapper)
        wrapper.__tenfold_cached__, wrapper.__tenfold_cache__ = cached, self
        return wrapper

    def _answer(self, call: Call) -> Any:
        if (found := self._find(call)) is None:
            self._start()
            return self._sync.run(look_up(self._core, call), call)
        (value,) = found
        return self._sync.compare(call, value) if self._core.shadow else value

    async def _answer_async(self, call: Call) -> Any:
        if (found := self._find(call)) is None:
            self._start()
            return await self._async.run(look_up(self._core, call), call)
        (value,) = found
        return await self._async.compare(call, value) if self._core.shadow else value

    def _find(self, call: Call) -> tuple[Any] | None:
        """The value of a call if the memory tier has it, in a tuple."""
        core = self._core
        found = core.memory.find(call.key, call.token, needs_watermark=core.is_durable)
        if found is None:
            return None
        slot, serving = found
        try:
            value = core.serve(call.function, slot)
        except UnstorableError:  # a validator of the user's own that does not take it any more
            return None
        if serving is Serving.REFRESH:
            core.refresh(call)
        return (value,)

    def _find_call(
        self, cached: CachedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        """The call, keyed; None if an argument cannot be part of a key."""
        try:
            return self._make_call(cached, args, kwargs)
        except UnkeyableError:
            self._core.count(cached, "unkeyable")
            return None

    def _make_call(self, cached: CachedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        values = cached.call_key.bind(args, kwargs)
        if cached.key_function is None:
            text = cached.call_key.text(values)
        else:
            text = encode_key(cached.key_function(*args, **kwargs))
        call = Call(cached, text, args, kwargs, values)
        self._complete(call)
        return call

    def _complete(self, call: Call) -> None:
        """Add what the surroundings of a call say: the tenant and the reader."""
        if self._vary is not None:
            with PERSONAL.collect() as reads:
                varied = self._vary()
            try:
                call.varied = encode_key(varied)
            except UnkeyableError as error:
                raise SettingsError(
                    f"vary= returned a value that {error}: let it return text or a number"
                ) from None
            call.allowed_reads = frozenset(reads)
            call.key = f"{call.varied}|{call.key}"
        call.key = shorten(call.function.key_prefix + call.key)
        if self._core.fence is not None:
            call.token = self._core.fence.token()

    # ------------------------------------------------------------------ without a decorator

    def get_or_load(
        self,
        key: Any,
        loader: Callable[[], R],
        *,
        ttl: float = 300.0,
        tags: Sequence[str] = (),
        returns: Any = Any,
    ) -> R:
        """The value under a key, or what ``loader()`` returns; awaitable if that is a coroutine function.

        Args:
            key: text, a number, or a tuple of such.
            returns: the type of the values; by default builtins, which come back as they were or not at all.
        """
        check_ttl("get_or_load", ttl, None)
        names = [check_tag(tag) for tag in tags]
        is_async = inspect.iscoroutinefunction(loader)
        cached = plain_function(is_async, ttl, returns, self._max_value_bytes)
        try:
            call = Call(cached, encode_key(key), loader=loader, tags=names)
        except UnkeyableError as error:
            raise SettingsError(
                f"the key of get_or_load {error}: use text, numbers, or a tuple of them"
            ) from None
        self._complete(call)
        answer: Any = self._answer_async if is_async else self._answer
        value: R = answer(call)
        return value

    # ------------------------------------------------------------------ invalidation

    def invalidate(self, *tags: str, session: Any = None) -> None:
        """Let nothing with one of these tags be served any more.

        Args:
            session: a Session or AsyncSession: after its commit, and not after a rollback. Without one, now;
                in asyncio use :meth:`ainvalidate` then, which does not block the event loop.

        Raises:
            SettingsError: a tag is none.
        """
        names = [check_tag(tag) for tag in tags]
        if session is None:
            self._renew(names)
            return
        from tenfold.commits import after_commit, find_action, sync_session

        of_session = sync_session(session)
        waiting = find_action(of_session, self)
        if not isinstance(waiting, Invalidation):
            waiting = Invalidation(self, of_session)
            after_commit(of_session, waiting, key=self)
            if self._log is not None:
                self._log.prepare(of_session)
        for name in names:
            waiting.generations.setdefault(name, new_generation())

    async def ainvalidate(self, *tags: str) -> None:
        """As :meth:`invalidate` without a session, for asyncio."""
        names = [check_tag(tag) for tag in tags]
        self._start()
        generations = {name: new_generation() for name in names}
        if self._core.fence is None:
            renewed = self._new_tags(generations)
        else:
            from sqlalchemy.util import greenlet_spawn

            renewed = await greenlet_spawn(self._new_tags, generations)
        await self._async.finish(invalidate(self._core, renewed), names)

    def drop_function(self, function: Callable[..., Any]) -> None:
        """Let nothing that this function returned be served any more."""
        self._renew(["@function:" + self._cached(function).name])

    def drop_variant(self, varied: Any) -> None:
        """Let nothing be served any more for a value of ``vary``, such as a tenant's."""
        self._renew([encodable("@vary:" + encode_key(varied))])

    def _new_tags(self, generations: Mapping[str, bytes], session: Any = None) -> dict[str, Tag]:
        fence = self._core.fence
        token = fence.commit_token(session) if fence is not None else None
        return {name: Tag(generation, token) for name, generation in generations.items()}

    def renew_committed(self, generations: Mapping[str, bytes], session: Any) -> None:
        """Renew tags after the commit that has just been made in this context."""
        from sqlalchemy.util.concurrency import in_greenlet

        tags = self._new_tags(generations, session)
        self._start()
        driver = self._async if in_greenlet() else self._sync
        driver.finish_commit(invalidate(self._core, tags), list(tags))

    def _renew(self, names: Iterable[str]) -> None:
        names = list(names)
        self._start()
        self._sync.finish(
            invalidate(self._core, self._new_tags({name: new_generation() for name in names})), names
        )

    # ------------------------------------------------------------------ operation

    def warm(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a cached function and store the result anew, whatever is stored; awaitable if it is async."""
        cached = self._cached(function)
        call = self._make_call(cached, args, kwargs)
        self._start()
        driver: Any = self._async if cached.is_async else self._sync
        return driver.run(look_up(self._core, call, renews=True), call)  # type: ignore[no-any-return]

    def explain(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Say how a call is cached: key, tags, ttl, and whether this process has it; nothing is loaded.

        Arguments that are no part of the key may be left out.
        """
        cached = self._cached(function)
        missing = {
            name: None
            for name in cached.call_key.ignored
            if cached.call_key.signature.parameters[name].default is inspect.Parameter.empty
        }
        if not args:
            kwargs = {**missing, **kwargs}
        call = self._make_call(cached, args, kwargs)
        found = self._core.memory.find(call.key, None)
        store = self._core.store
        return {
            "function": cached.name,
            "key": call.key,
            "redis_key": store.key("v", call.key) if isinstance(store, RedisStore) else None,
            "tags": [tag for tag in (*call.names(), *cached.known_tables()) if not tag.startswith("@")],
            "derives_tags": cached.derives_tags,
            "ttl": cached.ttl,
            "in_memory": found is not None,
        }

    def stats(self) -> dict[str, dict[str, int]]:
        """Lookups of this process by function and outcome."""
        return self._core.counts.by_function()

    def _cached(self, function: Callable[..., Any]) -> CachedFunction:
        cached = getattr(function, "__tenfold_cached__", None)
        if cached is None:
            raise SettingsError(
                f"{getattr(function, '__qualname__', function)!r} is not cached: decorate it with "
                "@cache.query"
            )
        return cached  # type: ignore[no-any-return]

    def _start(self) -> None:
        if (pid := os.getpid()) != self._pid:
            self._pid = pid
            self._core.reset()
            self._sync.reset()
        if self._listener is not None:
            self._listener.start()
        if self._log is not None:
            self._log.start()

    def close(self) -> None:
        """End the threads and close connections. In asyncio: ``await cache.aclose()``."""
        if self._derives_tags:
            with contextlib.suppress(DependencyError):
                from tenfold.caching.sqlalchemy import forget_listener

                forget_listener(self)
        if self._log is not None:
            self._log.stop()
        if self._listener is not None:
            self._listener.stop()
        self._sync.close()
        if self._core.server is not None:
            self._core.server.close()

    async def aclose(self) -> None:
        """As :meth:`close`, for a cache that was used in asyncio."""
        import asyncio

        await self._async.aclose()
        await asyncio.to_thread(self.close)
        if self._core.server is not None:
            await self._core.server.aclose()
