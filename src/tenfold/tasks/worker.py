"""Starts the workers of an app: one for each queue, with that queue's number of processes.

    tenfold tasks worker shop.tasks:celery [QUEUE …]

SIGTERM and Ctrl-C drain them: no new tasks, ``drain_s`` for those that run, and what still runs then is
given back; those of another Celery app, which has no ledger, are waited for. A second signal ends them at
once. A worker that ends by itself, as Celery's do now and then when their connection breaks at the wrong
moment, is started again, and one that hangs; one that ends three times within ten seconds of its start ends
them all.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from uuid import UUID

from tenfold.errors import SettingsError

__all__ = ["HANG_S", "list_commands", "run_workers"]

_GRACE_S = 10.0  # beyond the drain
_LOOK_S = 0.1
HANG_S = 30.0  # without a sign of life
_AGAIN_S, _SHORT_S, _MOST_SHORT = 1.0, 10.0, 3  # between two starts; a life that counts as a failed start


def list_commands(app: Any, target: str, queues: Sequence[str] = ()) -> list[list[str]]:
    """The command of each worker: one for each queue of an app of ours, one in all for another Celery app.

    Args:
        target: the app, ``package.module:attribute``.
        queues: only these.

    Raises:
        SettingsError: it is no Celery app, or has no such queue.
    """
    from celery import Celery

    if not isinstance(app, Celery):
        raise SettingsError(f"{target} is a {type(app).__name__}, not a Celery app: name the app")
    worker = [sys.executable, "-m", "celery", "-A", target, "worker", "-l", "INFO"]
    worker += ["--without-gossip", "--without-mingle"]
    if not _is_ours(app):
        return [[*worker, *(("-Q", ",".join(queues)) if queues else ())]]
    names = app.settings.queue_names()
    if unknown := [queue for queue in queues if queue not in names]:
        raise SettingsError(f"no queue {unknown[0]}: there are {', '.join(names)}")
    return [
        [*worker, "-Q", name, "-c", str(app.settings.queue(name).concurrency), "-n", f"{name}@%h"]
        for name in queues or names
    ]


def run_workers(
    app: Any, target: str, queues: Sequence[str] = (), *, health: str = "", hang_s: float = HANG_S
) -> int:
    """Run the workers until a signal arrives, or one of them cannot be kept running; return the exit status.

    Args:
        health: the address of the health endpoint, as ``0.0.0.0:8081``; empty for none. ``/live`` answers as
            long as this process looks after the workers. ``/ready`` answers 200 when they all take tasks,
            and database and broker can be reached; else 503 with the reasons. ``/metrics`` is for Prometheus.
        hang_s: a worker without a sign of life for so long is killed and started again.

    Raises:
        SettingsError: it is no Celery app, or has no such queue; the address cannot be used.
    """
    commands = list_commands(app, target, queues)
    is_ours = _is_ours(app)  # another app's tasks are lost when they are not waited for
    drain_s = app.settings.drain_s if is_ours else math.inf
    sys.stdout.write(f"{len(commands)} workers\n")
    sys.stdout.flush()
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopping.append(received))
    workers: list[_Worker] = []
    with TemporaryDirectory(prefix="tenfold-workers-") as folder, ExitStack() as stack:
        if health:
            stack.enter_context(_serve_health(health, app, workers, count=len(commands)))
        stack.callback(_end, workers, drain_s, stopping)
        for command in commands:
            heartbeat = Path(folder) / str(len(workers)) if is_ours else None
            workers.append(_Worker(command, heartbeat, hang_s))
        while not stopping and all(worker.keep_running() for worker in workers):
            time.sleep(_LOOK_S)
    return 0 if stopping else 1


def _is_ours(app: Any) -> bool:
    """Return whether an app was made by :func:`tenfold.tasks.create_celery`, which loads its class then."""
    loaded: Any = sys.modules.get("tenfold.tasks.celery")
    return loaded is not None and isinstance(app, loaded.LedgerCelery)


def _end(workers: Sequence[_Worker], drain_s: float, signals: Sequence[int]) -> None:
    """Drain the workers; kill what is left after that, or at a second signal."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + drain_s + _GRACE_S
    while any(worker.is_alive for worker in workers) and time.monotonic() < deadline and len(signals) < 2:
        time.sleep(_LOOK_S)
    for worker in workers:
        worker.kill()


class _Worker:
    """One worker, started again when it ends, and when it hangs.

    Args:
        heartbeat: the file that it touches, see :mod:`tenfold.tasks.liveness`; None for an app that does not.
        hang_s: without that for so long it hangs.
    """

    def __init__(self, command: Sequence[str], heartbeat: Path | None, hang_s: float) -> None:
        self._command, self._heartbeat, self._hang_s = command, heartbeat, hang_s
        self._failed_starts = 0
        self._start()

    @property
    def is_alive(self) -> bool:
        """Whether its main process runs."""
        return self._process.poll() is None

    @property
    def is_ready(self) -> bool:
        """Whether it takes tasks."""
        return self.is_alive and (self._heartbeat is None or self._heartbeat.exists())

    def _start(self) -> None:
        environment = dict(os.environ)
        if self._heartbeat is not None:
            self._heartbeat.unlink(missing_ok=True)
            # SIGTERM drains for drain_s; without the first it would wait for the longest task.
            from tenfold.tasks.states import HEARTBEAT_FILE

            environment |= {"REMAP_SIGTERM": "SIGQUIT", HEARTBEAT_FILE: str(self._heartbeat)}
        # A group of its own: Ctrl-C reaches it once, from here.
        own_group: dict[str, Any] = {"process_group": 0}
        if sys.version_info < (3, 11):  # noqa: UP036 - the service's Python may be older than tenfold's
            own_group = {"preexec_fn": os.setpgrp}
        self._process = subprocess.Popen(self._command, env=environment, **own_group)  # noqa: S603
        self._started_at, self._ended_at = time.monotonic(), 0.0
        self._touched_at, self._silent_looks = 0.0, 0

    def keep_running(self) -> bool:
        """Start it again a second after it has ended; return whether it can be kept running."""
        now = time.monotonic()
        if self.is_alive:
            if self._hangs():
                sys.stderr.write(f"tenfold: {' '.join(self._command[-6:])} hangs: it is started again\n")
                self.kill()
            return True
        if not self._ended_at:
            self._ended_at = now
            self.kill()
            self._failed_starts = self._failed_starts + 1 if now - self._started_at < _SHORT_S else 0
        if self._failed_starts < _MOST_SHORT and now - self._ended_at >= _AGAIN_S:
            self._start()
        return self._failed_starts < _MOST_SHORT

    def _hangs(self) -> bool:
        """Return whether its file is old; counted in looks, for this process may have been paused, too."""
        if self._heartbeat is None:
            return False
        try:
            touched_at = self._heartbeat.stat().st_mtime
        except OSError:  # it starts
            return False
        self._silent_looks = self._silent_looks + 1 if touched_at == self._touched_at else 0
        self._touched_at = touched_at
        return self._silent_looks * _LOOK_S > self._hang_s

    def terminate(self) -> None:
        """Tell it to drain."""
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill what is left of it and of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


# ------------------------------------------------------------------ health


@contextmanager
def _serve_health(address: str, app: Any, workers: Sequence[_Worker], *, count: int) -> Iterator[None]:
    """Serve ``/live``, ``/ready`` and ``/metrics`` during a block, in which ``count`` workers are started."""
    host, _, port = address.rpartition(":")

    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0

        def do_GET(self) -> None:
            if self.path == "/metrics" and hasattr(app, "ledger"):
                from tenfold.tasks.prometheus import render_metrics

                self._answer(200, "text/plain; version=0.0.4; charset=utf-8", render_metrics(app))
            elif self.path in ("/live", "/ready"):
                reasons = _reasons_not_ready(app, workers, count) if self.path == "/ready" else []
                body = json.dumps({"ok": not reasons, "reasons": reasons}).encode()
                self._answer(503 if reasons else 200, "application/json", body)
            else:
                self.send_error(404)

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing of a probe every few seconds."""

    try:
        server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
    except (OSError, ValueError, OverflowError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise SettingsError(
            f"the health endpoint cannot listen on {address}{reason}: write it as 0.0.0.0:8081"
        ) from None
    thread = Thread(target=server.serve_forever, args=(0.1,), name="tenfold-health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _reasons_not_ready(app: Any, workers: Sequence[_Worker], count: int) -> list[str]:
    found = []
    if starting := count - sum(worker.is_ready for worker in workers):
        found.append(f"{starting} of {count} workers take no tasks yet")
    if hasattr(app, "ledger"):
        try:
            app.ledger.look(UUID(int=0))
        except Exception as error:
            found.append(f"the database does not answer ({type(error).__name__})")
    try:
        with app.connection_for_read(heartbeat=0) as broker:
            broker.ensure_connection(max_retries=1, interval_start=0, timeout=2)
    except Exception as error:
        found.append(f"the broker does not answer ({type(error).__name__})")
    return found
