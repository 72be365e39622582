"""One thread a process that looks after every pool once a second, so that no request has to."""

from __future__ import annotations

import logging
import os
import threading
from typing import Protocol
from weakref import WeakSet

logger = logging.getLogger("tenfold.database")

EVERY_S = 1.0


class Watched(Protocol):
    """What wants to be looked after."""

    def look(self) -> None:
        """Bring everything up to date."""


_pools: WeakSet[Watched] = WeakSet()
_lock = threading.Lock()
_thread: threading.Thread | None = None


def add(pool: Watched) -> None:
    """Look after this pool for as long as it lives. The thread ends with the last one."""
    global _thread  # noqa: PLW0603 - one thread a process
    with _lock:
        _pools.add(pool)
        if _thread is None:
            _thread = threading.Thread(target=_run, name="tenfold-pools", daemon=True)
            _thread.start()


def _run() -> None:
    global _thread  # noqa: PLW0603
    pause = threading.Event()
    while True:
        pause.wait(EVERY_S)
        with _lock:
            pools = list(_pools)
            if not pools:
                _thread = None
                return
        for pool in pools:
            try:
                pool.look()
            except Exception:  # one pool's trouble is not another's, and none of the service's
                logger.exception("a pool cannot be looked after")
        del pool, pools


def _forked() -> None:
    """A fork takes no threads along; the pools of the child start their own with their next connection."""
    global _thread, _lock
    _thread, _lock = None, threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_forked)
