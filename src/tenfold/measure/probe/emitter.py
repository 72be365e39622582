"""A thread that sends a recorder's batches to the collector and never makes a request wait.

While no collector listens, the thread tries to connect once a second and nothing is recorded. A collector
that stops reading (paused, or slow) fills the socket; then one unsent frame waits here, the recorder keeps a
bounded number of requests and counts the others as dropped. When the collector disconnects, recording ends
within half a second.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from pathlib import Path

from tenfold.measure.probe import probe_protocol, sqlalchemy
from tenfold.measure.probe.eventloop import LoopMonitor
from tenfold.measure.probe.libraries import watch_libraries
from tenfold.measure.probe.memory import GarbageCollections, MemoryTrace
from tenfold.measure.probe.recorder import Recorder
from tenfold.measure.probe.sampler import StackSampler

RETRY_S = 1.0
BEAT_S = 0.05  # interval at which the event loop is sampled
BEATS = 5  # beats between two frames
SEND_S = 0.2  # longest wait in one send


class Emitter:
    """One daemon thread per process; a forked child starts its own with its first request."""

    def __init__(self, recorder: Recorder, monitor: LoopMonitor, address: Path, *, instance: str) -> None:
        self._recorder = recorder
        self._monitor = monitor
        self._sampler = StackSampler(recorder, monitor)
        self._collections = GarbageCollections()
        self._trace = MemoryTrace(recorder.sites)
        self._address = str(address)
        self._instance = instance
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; call it once per process."""
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stop,), name="tenfold-probe", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, within a second."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(RETRY_S)

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                    link.settimeout(SEND_S)
                    link.connect(self._address)
                    self._stream(link, stop)
            except OSError:
                pass  # no collector, or it disconnected: the app must not notice
            finally:
                self._recorder.stop()
                self._collections.stop()
                self._trace.stop()
            stop.wait(RETRY_S)

    def _stream(self, link: socket.socket, stop: threading.Event) -> None:
        sqlalchemy.reset_pools()
        self._sampler.start()
        self._recorder.start()
        self._collections.start()
        pending = probe_protocol.pack(probe_protocol.Hello(os.getpid(), self._instance))
        beat, drained = 0, time.perf_counter()
        while not stop.wait(BEAT_S):
            self._monitor.sample()
            self._sampler.sample()
            beat += 1
            if not pending and beat >= BEATS:
                now = time.perf_counter()
                pending = probe_protocol.pack(self._batch(now - drained, _received(link)))
                beat, drained = 0, now
            if pending:
                pending = pending[_send(link, pending) :]

    def _batch(self, seconds: float, command: bytes) -> probe_protocol.Batch:
        watch_libraries(self._recorder)
        batch = self._recorder.drain(seconds)
        self._monitor.drain(batch)
        self._sampler.drain(batch)
        self._collections.drain(batch)
        self._trace.obey(command, batch)
        batch.pools = sqlalchemy.drain_pools()
        return batch


def _received(link: socket.socket) -> bytes:
    """Return the last byte that the collector has sent since the last call, without a wait."""
    readable = select.poll()
    readable.register(link, select.POLLIN)
    return link.recv(16)[-1:] if readable.poll(0) else b""


def _send(link: socket.socket, data: bytes) -> int:
    try:
        return link.send(data, getattr(socket, "MSG_NOSIGNAL", 0))
    except TimeoutError:
        return 0
