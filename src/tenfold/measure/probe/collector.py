"""The measuring side of the probe: listens on a Unix socket and aggregates what all workers send."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tenfold.errors import MeasurementError
from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.aggregate import Aggregate
from tenfold.measure.probe.evidence import Evidence
from tenfold.measure.probe.sample_totals import TextTable

CONNECTIONS = 256
MAYBE_POSTGRESQL = ("", "postgresql")
EXAMPLES = 2_000  # statement texts kept, for EXPLAIN
MEMORY = 20_000  # points of its course
READ_BYTES = 256 * 1024

_HELLO, _BATCH = msgspec.json.Decoder(probe_protocol.Hello), msgspec.json.Decoder(probe_protocol.Batch)


class Collector:
    """Receive what the probes record, from the moment a worker finds the socket (within a second).

        with Collector(address) as collector:
            collector.reset()
            ...                       # a trial
            evidence = collector.evidence()

    A worker sends four times a second: the last 0.3 s may be missing.

    Args:
        address: the Unix socket to listen on; created with mode 0600, removed at the end.

    Raises:
        MeasurementError: the socket cannot be created, or another collector listens on it.
    """

    def __init__(self, address: Path) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._tally = Aggregate(time.perf_counter())
        self._examples: dict[str, str] = {}
        self._recording = 0
        self._connections: dict[socket.socket, _Connection] = {}
        self._kept: dict[str, int] = {}
        self._requests: dict[int, int] = {}  # finished so far, by worker
        self._blocks: dict[int, int] = {}  # of memory, by worker
        self._memory: deque[tuple[float, int, int]] = deque(maxlen=MEMORY)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._listener = _listen(self._address)
        self._inode = self._address.stat().st_ino
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="tenfold-collector", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.close()
        if self._thread is not None:
            self._thread.join(5.0)

    @property
    def workers(self) -> int:
        """Number of workers that are connected and record: each says so once it has started."""
        return self._recording

    def reset(self) -> None:
        """Discard the evidence so far; requests that are in progress now are not counted either."""
        with self._lock:
            self._tally = Aggregate(time.perf_counter())

    def cut(self) -> tuple[Aggregate, float]:
        """Reset, and return the records so far with their end, to be merged with those of other trials."""
        with self._lock:
            now = time.perf_counter()
            ended, self._tally = self._tally, Aggregate(now)
            return ended, now

    def evidence(self) -> Evidence:
        """Return the evidence since the last reset."""
        with self._lock:
            return self._tally.evidence(time.perf_counter())

    def trace_memory(self, command: bytes) -> None:
        """Ask every worker to trace its memory, or to stop and tell which lines keep it."""
        with self._lock:
            self._kept.clear()
            for link in list(self._connections):
                with suppress(OSError):
                    link.send(command)

    def kept(self) -> dict[str, int]:
        """Return line → bytes, of all workers that have stopped tracing since."""
        with self._lock:
            return dict(self._kept)

    def memory(self) -> list[tuple[float, int, int]]:
        """Return times (``time.monotonic()``), requests finished by then, and the interpreters' blocks."""
        with self._lock:
            return list(self._memory)

    def sql_examples(self) -> dict[str, str]:
        """Return fingerprint → one SQL text as the driver got it, for EXPLAIN by PostgreSQL.

        The texts have no parameters, but values that the app writes into its SQL: keep them in memory only.
        """
        with self._lock:
            return dict(self._examples)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener, self._woken:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            connections = self._connections
            while True:
                for key, _ in selector.select():
                    link = key.fileobj
                    assert isinstance(link, socket.socket)
                    if link is self._woken:
                        self._close(connections)
                        return
                    if link is self._listener:
                        self._accept(selector, connections)
                    elif not self._read(connections[link]):
                        selector.unregister(link)
                        del connections[link]
                        link.close()
                    self._recording = sum(connection.worker > 0 for connection in connections.values())

    def _accept(
        self, selector: selectors.BaseSelector, connections: dict[socket.socket, _Connection]
    ) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError:
            return
        if len(connections) >= CONNECTIONS:
            link.close()
            return
        link.setblocking(False)
        connections[link] = _Connection(link)
        selector.register(link, selectors.EVENT_READ)

    def _read(self, connection: _Connection) -> bool:
        """Read what has arrived; return False when the connection has to be closed."""
        try:
            messages = connection.messages()
        except BlockingIOError:
            return True
        except (OSError, msgspec.DecodeError, _Closed):
            return False
        with self._lock:
            for message in messages:
                self._add(connection, message)
        return True

    def _add(self, connection: _Connection, batch: probe_protocol.Batch) -> None:
        connection.texts.add(batch)
        for text in batch.statements:
            if text.database in MAYBE_POSTGRESQL and len(self._examples) < EXAMPLES:
                self._examples.setdefault(text.fingerprint, text.sql)
        self._tally.add(connection.worker, batch, connection.texts, now=time.perf_counter())
        for line, size in batch.kept.items():
            self._kept[line] = self._kept.get(line, 0) + size
        if connection.worker not in self._blocks:  # a worker that starts is no growth
            self._memory.clear()
        self._blocks[connection.worker] = batch.python_blocks
        self._requests[connection.worker] = self._requests.get(connection.worker, 0) + len(batch.requests)
        self._memory.append((time.monotonic(), sum(self._requests.values()), sum(self._blocks.values())))

    def _close(self, connections: dict[socket.socket, _Connection]) -> None:
        for link in connections:
            link.close()
        try:
            if self._address.stat().st_ino == self._inode:  # still this collector's socket
                self._address.unlink()
        except FileNotFoundError:
            pass


class _Closed(Exception):
    """The peer closed the connection, or sent something that is not the protocol."""


class _Connection:
    """One worker's stream, split into messages."""

    def __init__(self, link: socket.socket) -> None:
        self.worker = 0
        self.texts = TextTable()
        self._link = link
        self._buffer = bytearray()

    def messages(self) -> list[probe_protocol.Batch]:
        """Read what has arrived and return the batches that are complete; the first message says whose."""
        data = self._link.recv(READ_BYTES)
        if not data:
            raise _Closed
        self._buffer += data
        complete = []
        while (body := self._body()) is not None:
            if self.worker:
                complete.append(_BATCH.decode(body))
            else:
                self.worker = _HELLO.decode(body).pid
        return complete

    def _body(self) -> bytes | None:
        head = probe_protocol.LENGTH.size
        if len(self._buffer) < head:
            return None
        (length,) = probe_protocol.LENGTH.unpack_from(self._buffer)
        if length > probe_protocol.FRAME_LIMIT:
            raise _Closed
        if len(self._buffer) < head + length:
            return None
        body = bytes(self._buffer[head : head + length])
        del self._buffer[: head + length]
        return body


def _listen(address: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if address.is_socket():
            _remove_stale(address)
        listener.bind(str(address))
        address.chmod(0o600)  # before listen(): no connection is possible in between
        listener.listen(64)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise MeasurementError(
            f"the probe's socket {os.fspath(address)} cannot be opened ({error}); "
            "give a path shorter than 100 characters in a folder you may write to"
        ) from error
    return listener


def _remove_stale(address: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(0.5)
        try:
            other.connect(str(address))
        except ConnectionRefusedError:
            address.unlink()
            return
        except OSError:
            pass
    raise MeasurementError(f"another measurement listens on {address}; wait until it ends")
