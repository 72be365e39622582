"""A step of each worker: it starts the relay, and touches a file as long as the event loop turns.

A worker that was stopped, or whose loop hangs, is alive for the system and takes no tasks. The starter of
workers (:mod:`tenfold.tasks.worker`) looks at the file, and starts such a worker again.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from tenfold.errors import DependencyError
from tenfold.process_thread import ProcessThread
from tenfold.tasks.states import HEARTBEAT_FILE

try:
    from celery import bootsteps
except ImportError:
    raise DependencyError("Celery is not installed: pip install 'tenfold[tasks]'") from None

__all__ = ["LoopStep"]

_TURN_S = 1.0
_LATE_S = 3.0  # a loop that turned longer ago does not turn: the file grows old


class _Heartbeat(ProcessThread):
    """Touches the file every second, unless the loop should turn and does not."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="tenfold-worker-heartbeat")
        self._path = path
        self.turned_at: float | None = None  # None: it is connecting, or a task runs in this very process

    def _run(self, stopping: threading.Event) -> None:
        while True:
            turned_at = self.turned_at
            if turned_at is None or time.monotonic() - turned_at < _LATE_S:
                self._path.touch()
            if stopping.wait(_TURN_S):
                return


class LoopStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """A step of Celery's consumer: starts with each of its connections, ends with it."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        path = os.environ.get(HEARTBEAT_FILE)
        self._heartbeat = _Heartbeat(Path(path)) if path else None
        self._timer: Any = None
        super().__init__(consumer, **options)

    def start(self, consumer: Any) -> None:
        """Start the relay, in workers that tests embed, too; let the event loop say that it turns."""
        ledger, relay = consumer.app.ledger, consumer.app.relay
        assert ledger.engine is not None  # made before there is a thread that a fork could interrupt
        relay.start()
        if self._heartbeat is None:
            return
        self._heartbeat.start()
        if consumer.hub is not None:
            self._turn()
            self._timer = consumer.timer.call_repeatedly(_TURN_S, self._turn)

    def stop(self, consumer: Any) -> None:
        """Expect nothing of the loop while the consumer connects again, or ends."""
        if self._heartbeat is not None:
            self._heartbeat.turned_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def shutdown(self, consumer: Any) -> None:
        """Stop the relay with its worker."""
        consumer.app.relay.stop()

    def _turn(self) -> None:
        assert self._heartbeat is not None
        self._heartbeat.turned_at = time.monotonic()
