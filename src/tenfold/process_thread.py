"""A daemon thread that belongs to one process: after a fork, the child starts its own."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod

__all__ = ["ProcessThread"]


class ProcessThread(ABC):
    """Runs :meth:`_run` beside the service, from the first :meth:`start` in a process to :meth:`stop`.

    Args:
        name: of the thread.
    """

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._pid = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; nothing happens when it runs in this process."""
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            self._prepare()
            self._stopping = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stopping,), name=self._name, daemon=True
            )
            self._pid = os.getpid()
            self._thread.start()

    def stop(self, *, join_s: float = 5.0) -> None:
        """End the thread, and wait ``join_s`` seconds for that at most."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None and self._pid == os.getpid():
                self._stopping.set()
                self._interrupt()
                thread.join(join_s)
            self._pid = 0

    @abstractmethod
    def _run(self, stopping: threading.Event) -> None:
        """Work until ``stopping`` is set."""

    def _prepare(self) -> None:  # noqa: B027 - not every thread needs it
        """Forget what belongs to the thread of another process; called before each start."""

    def _interrupt(self) -> None:  # noqa: B027 - not every thread needs it
        """End what the thread may be waiting for."""
