"""A process's copy of the directory, valid for a lease: past it, nothing is routed until it is read again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from tenfold.errors import DirectoryError
from tenfold.sharding.directory import Directory

__all__ = ["DirectoryLease"]

_WAIT_S = 2.0
_RETRY_S = 0.5


def _boot_time() -> float:
    """Seconds that go on while the machine is suspended, where there is such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class DirectoryLease:
    """Reads the directory when it is first needed, and again, beside the service, each third of the lease.

    One thread reads at a time and everyone else uses what is known. Use from any thread and event loop, also
    after a fork.

    Args:
        load: reads the directory, given the one that is known; its DirectoryError is passed on.
        lease_s: seconds that a directory may be used after the start of the read that gave it.
        clock: seconds.
    """

    def __init__(
        self,
        load: Callable[[Directory | None], Directory],
        *,
        lease_s: float,
        clock: Callable[[], float] = _boot_time,
    ) -> None:
        self._load, self._lease_s, self._clock = load, lease_s, clock
        self._held: tuple[Directory, float] | None = None
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # that of the parent may be held for ever
        self._reading: Future[Directory] | None = None
        self._waiting: Future[Directory] | None = None
        self._failure: tuple[DirectoryError, float] | None = None

    def get(self) -> Directory:
        """Return the directory, after a read if the lease is over.

        Raises:
            DirectoryError: it is over, and the directory cannot be read.
        """
        return self._known() or self._result(self._read(since_failure=True))

    async def get_async(self) -> Directory:
        """As :meth:`get`, without blocking the event loop."""
        return self._known() or await self._await(self._read(since_failure=True))

    def renew(self) -> Directory:
        """Return the directory as a read finds it that begins after this call; errors as :meth:`get`."""
        return self._result(self._read())

    async def renew_async(self) -> Directory:
        """As :meth:`renew`, without blocking the event loop."""
        return await self._await(self._read())

    def _known(self) -> Directory | None:
        held = self._held
        if held is None or (age := self._clock() - held[1]) >= self._lease_s or self._pid != os.getpid():
            return None
        if age >= self._lease_s / 3 and self._reading is None:
            with contextlib.suppress(DirectoryError):
                self._read(since_failure=True)
        return held[0]

    def _read(self, *, since_failure: bool = False) -> Future[Directory]:
        """Start a read, or join one that has yet to begin."""
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            if since_failure and self._failure and self._clock() - self._failure[1] < _RETRY_S:
                raise self._expired(self._failure[0])
            if self._reading is None:
                self._reading = Future()
                self._start(self._reading)
                return self._reading
            if since_failure:  # what is being read now will do
                return self._reading
            self._waiting = self._waiting or Future()
            return self._waiting

    def _start(self, future: Future[Directory]) -> None:
        # A daemon: a server that hangs must not keep the process from its end.
        threading.Thread(target=self._run, args=(future,), name="tenfold directory", daemon=True).start()

    def _run(self, future: Future[Directory]) -> None:
        started = self._clock()
        try:
            directory = self._load(self._held[0] if self._held else None)
        except BaseException as error:  # handed to those who wait
            failure = error if isinstance(error, DirectoryError) else DirectoryError(f"{error!r}")
            self._finish((failure, self._clock()))
            future.set_exception(self._expired(failure) if isinstance(error, DirectoryError) else error)
            return
        self._held = directory, started
        self._finish(None)
        future.set_result(directory)

    def _finish(self, failure: tuple[DirectoryError, float] | None) -> None:
        """End a read. At once with its failure: otherwise a later caller could still join it."""
        with self._lock:
            self._failure = failure
            self._reading, self._waiting = self._waiting, None
            if self._reading is not None:
                self._start(self._reading)

    def _result(self, future: Future[Directory]) -> Directory:
        try:
            return future.result(_WAIT_S)
        except FutureTimeoutError:
            raise self._expired(DirectoryError(_SLOW)) from None

    async def _await(self, future: Future[Directory]) -> Directory:
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), _WAIT_S)
        except TimeoutError:
            raise self._expired(DirectoryError(_SLOW)) from None

    def _expired(self, cause: DirectoryError) -> DirectoryError:
        if self._held is None:
            return DirectoryError(str(cause))
        age = self._clock() - self._held[1]
        return DirectoryError(
            f"{cause}; last read {age:.0f} s ago, so that nothing is routed until it answers"
        )


_SLOW = f"the directory of shards does not answer within {_WAIT_S:g} s"
