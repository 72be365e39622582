"""One thread a process that updates every pool's findings and metrics once a second."""

from __future__ import annotations

import logging
import os
import threading
from typing import Protocol
from weakref import WeakSet

logger = logging.getLogger("tenfold.database")

INTERVAL_S = 1.0


class Updatable(Protocol):
    """An object that the thread updates."""

    def update(self) -> None:
        """Bring everything up to date."""


_registered: WeakSet[Updatable] = WeakSet()
_lock = threading.Lock()
_thread: threading.Thread | None = None


def register(item: Updatable) -> None:
    """Update ``item`` for as long as it lives. The thread ends with the last one."""
    global _thread  # noqa: PLW0603 - one thread a process
    with _lock:
        _registered.add(item)
        if _thread is None:
            _thread = threading.Thread(target=_run, name="tenfold-pools", daemon=True)
            _thread.start()


def _run() -> None:
    global _thread  # noqa: PLW0603
    pause = threading.Event()
    while True:
        pause.wait(INTERVAL_S)
        with _lock:
            items = list(_registered)
            if not items:
                _thread = None
                return
        for item in items:
            try:
                item.update()
            except Exception:  # one pool's error must not stop the others' updates
                logger.exception("a pool's findings and metrics cannot be updated")
        del item, items


def _reset_after_fork() -> None:
    """A fork takes no threads along; the pools of the child start their own with their next connection."""
    global _thread, _lock
    _thread, _lock = None, threading.Lock()
    _registered.clear()


os.register_at_fork(after_in_child=_reset_after_fork)
