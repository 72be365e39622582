"""Carries out the steps of a lookup: for threads, and for asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from tenfold.caching.core import Call, Core
from tenfold.caching.lookup import AskPrimary, Load, Loaded, Pause, Wait, look_up
from tenfold.caching.stores import Execute, Steps
from tenfold.errors import SettingsError
from tenfold.reads import PERSONAL

__all__ = ["AsyncDriver", "SyncDriver"]

_REFRESH_THREADS = 2
_LIMIT_WAIT_S = 5.0
_log = logging.getLogger("tenfold.caching")


class _Observation:
    """What is noted around one load, for both drivers."""

    def __init__(self, cache: Core, call: Call, load: Load) -> None:
        self._cache, self._call, self._load = cache, call, load
        self._personal: set[str] = set()
        self._tables: set[str] = set()
        self._watch: Any = None
        self.obstacle = ""

    @contextmanager
    def observe(self) -> Iterator[None]:
        """Watch the connections, tables and personal values that a block uses."""
        cache, call = self._cache, self._call
        with ExitStack() as exits:
            self._personal = exits.enter_context(PERSONAL.collect())
            if call.function.derives_tags:
                self._tables = exits.enter_context(_collect_tables())
            if cache.fence is not None:
                self._watch = exits.enter_context(cache.fence.watch_load(self._load.required))
            yield

    def check_before(self, session: Any) -> None:
        """Look at a Session before the load: an open snapshot is older than what was read of the tags."""
        from tenfold.caching.sqlalchemy import find_obstacle

        self.obstacle = find_obstacle(session, is_before=True)
        if self._watch is not None and not self.obstacle:
            self._cache.fence.check_session(self._watch, session, self._load.required)  # type: ignore[union-attr]

    def check_after(self, session: Any) -> None:
        """Look at it again: the load may have written."""
        from tenfold.caching.sqlalchemy import find_obstacle

        self.obstacle = self.obstacle or find_obstacle(session, is_before=False)

    def loaded(self, value: Any, seconds: float) -> Loaded:
        """The outcome of the load.

        Raises:
            SettingsError: it read personal values, in debug mode; or it returned a coroutine.
        """
        cache, call = self._cache, self._call
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise SettingsError(f"{call.function.name} returned a coroutine: write it as an `async def`")
        found = Loaded(value, obstacle=self.obstacle, tables=frozenset(self._tables), seconds=seconds)
        if self._watch is not None:
            found.token, found.on_primary = self._watch.token, self._watch.on_primary
            found.obstacle = found.obstacle or self._watch.obstacle
        if personal := self._personal - call.allowed_reads:
            found.obstacle = (
                f"it depends on the {sorted(personal)[0]}, which is no part of the key: pass it as an "
                "argument, or "
                "name it with QueryCache(vary=…)"
            )
            if cache.debug:
                raise SettingsError(f"{call.function.name} cannot be cached: {found.obstacle}")
        cache.counts.record_load(call.function.name, seconds)
        return found


def _collect_tables() -> Any:
    from tenfold.caching.sqlalchemy import collect_tables

    return collect_tables()


def _note_delayed(cache: Core, names: list[str], took: bool) -> None:
    if not took:
        cache.counts.add("invalidate", "delayed")
        _log.warning(
            "Redis did not take the invalidation of %s: it is repeated once it does", ", ".join(names[:5])
        )


# ------------------------------------------------------------------ threads


class SyncDriver:
    """Carries out steps in the calling thread."""

    def __init__(self, cache: Core, direct_loads: int) -> None:
        self._cache = cache
        self._limit = threading.BoundedSemaphore(direct_loads)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def run(self, steps: Steps[Any], call: Call | None = None) -> Any:
        """Carry out all steps; return their result."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._do(step, call)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            return end.value

    def finish(self, steps: Steps[bool], names: list[str]) -> None:
        """Carry out an invalidation; one that Redis did not take is logged."""
        _note_delayed(self._cache, names, self.run(steps))

    finish_commit = finish

    def _do(self, step: Any, call: Call | None) -> Any:
        if isinstance(step, Execute):
            return self._cache.server.execute(step.commands, is_urgent=step.is_urgent)
        if isinstance(step, Load):
            assert call is not None
            return self._load(step, call)
        if isinstance(step, Wait):
            try:
                return step.future.result(step.timeout_s)
            except FutureTimeoutError:
                return None
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        assert isinstance(step, AskPrimary)
        return self._cache.fence.primary_token() if self._cache.fence else None

    def _load(self, step: Load, call: Call) -> Loaded:
        has_place = step.is_limited and self._limit.acquire(timeout=_LIMIT_WAIT_S)
        try:
            observation = _Observation(self._cache, call, step)
            with observation.observe():
                session = _inner_session(call.session)
                if session is not None:
                    observation.check_before(session)
                started = time.perf_counter()
                value = call.load()
                seconds = time.perf_counter() - started
                if session is not None:
                    observation.check_after(session)
            return observation.loaded(value, seconds)
        finally:
            if has_place:
                self._limit.release()

    def refresh(self, call: Call) -> None:
        """Load a value again in another thread, with a session of its own."""
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(
                _REFRESH_THREADS, thread_name_prefix="tenfold-refresh"
            )
        self._pool.submit(contextvars.copy_context().run, self._refresh, call)

    def _refresh(self, call: Call) -> None:
        try:
            with ExitStack() as exits:
                factory = call.function.session_factory if call.session is not None else None
                fresh = call.for_anyone(exits.enter_context(factory()) if factory else None)
                self.run(look_up(self._cache, fresh, renews=True), fresh)
        except Exception:
            _log.warning("the refresh of %s failed", call.function.name, exc_info=True)
        finally:
            self._cache.end_refresh(call)

    def compare(self, call: Call, value: Any) -> Any:
        """Compare a share of the hits with what a load returns now; return the hit."""
        if self._cache.draws_shadow():
            self._cache.compare(call, value, self._load(Load(), call).value)
        return value

    def reset(self) -> None:
        """Forget the threads of another process, in a fork of it."""
        self._pool, self._lock = None, threading.Lock()

    def close(self) -> None:
        """End the threads of refreshes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _inner_session(session: Any) -> Any:
    if session is None:
        return None
    from tenfold.commits import sync_session

    return sync_session(session)


# ------------------------------------------------------------------ asyncio


class AsyncDriver:
    """Carries out steps in the running event loop."""

    def __init__(self, cache: Core, direct_loads: int) -> None:
        self._cache, self._direct_loads = cache, direct_loads
        self._limits: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, steps: Steps[Any], call: Call | None = None) -> Any:
        """Carry out all steps; return their result."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._do(step, call)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            return end.value

    async def finish(self, steps: Steps[bool], names: list[str]) -> None:
        """Carry out an invalidation, also when the caller is cancelled meanwhile."""
        task = self._keep(self.run(steps))
        _note_delayed(self._cache, names, await asyncio.shield(task))

    def finish_commit(self, steps: Steps[bool], names: list[str]) -> None:
        """As :meth:`finish`, from code that SQLAlchemy runs for an AsyncSession."""
        from sqlalchemy.util import await_only

        await_only(self.finish(steps, names))

    async def _do(self, step: Any, call: Call | None) -> Any:
        if isinstance(step, Execute):
            return await self._cache.server.aexecute(step.commands, is_urgent=step.is_urgent)
        if isinstance(step, Load):
            assert call is not None
            return await self._load(step, call)
        if isinstance(step, Wait):
            future = asyncio.wrap_future(step.future)
            # Neither the timeout nor a cancellation may cancel what others wait for.
            done, _ = await asyncio.wait(
                {asyncio.ensure_future(_await_outcome(future))}, timeout=step.timeout_s
            )
            return done.pop().result() if done else None
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        assert isinstance(step, AskPrimary)
        if self._cache.fence is None:
            return None
        from sqlalchemy.util import greenlet_spawn

        return await greenlet_spawn(self._cache.fence.primary_token)

    async def _load(self, step: Load, call: Call) -> Loaded:
        limit = self._loop_limit() if step.is_limited else None
        if limit is not None:
            await limit.acquire()
        try:
            observation = _Observation(self._cache, call, step)
            with observation.observe():
                session = call.session
                if session is not None:
                    await _check(session, observation.check_before)
                started = time.perf_counter()
                value = await call.load()
                seconds = time.perf_counter() - started
                if session is not None:
                    await _check(session, observation.check_after)
            return observation.loaded(value, seconds)
        finally:
            if limit is not None:
                limit.release()

    def _loop_limit(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        limit = self._limits.get(loop)
        if limit is None:
            limit = self._limits[loop] = asyncio.Semaphore(self._direct_loads)
        return limit

    def refresh(self, call: Call) -> None:
        """Load a value again in a task, with a session of its own."""
        self._keep(self._refresh(call))

    async def _refresh(self, call: Call) -> None:
        try:
            async with AsyncExitStack() as exits:
                factory = call.function.session_factory if call.session is not None else None
                fresh = call.for_anyone(await exits.enter_async_context(factory()) if factory else None)
                await self.run(look_up(self._cache, fresh, renews=True), fresh)
        except Exception:
            _log.warning("the refresh of %s failed", call.function.name, exc_info=True)
        finally:
            self._cache.end_refresh(call)

    async def compare(self, call: Call, value: Any) -> Any:
        """As the other driver's."""
        if self._cache.draws_shadow():
            loaded = await self._load(Load(), call)
            self._cache.compare(call, value, loaded.value)
        return value

    def _keep(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """End the tasks of this event loop."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _await_outcome(future: asyncio.Future[Any]) -> Any:
    return await asyncio.shield(future)


async def _check(session: Any, check: Any) -> None:
    if hasattr(session, "run_sync"):
        await session.run_sync(check)
    else:
        check(_inner_session(session))
