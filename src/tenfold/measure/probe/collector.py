"""The measuring side of the probe: listens on a Unix socket and adds up what all workers send."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tenfold.errors import MeasurementError
from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.aggregate import Tally, Texts
from tenfold.measure.probe.evidence import Evidence

CONNECTIONS = 256
EXAMPLES = 2_000  # statement texts kept, for EXPLAIN
READ = 256 * 1024

_DECODER: msgspec.msgpack.Decoder[probe_protocol.Hello | probe_protocol.Batch] = msgspec.msgpack.Decoder(
    probe_protocol.Hello | probe_protocol.Batch
)


class Collector:
    """Receives what probes see, from the moment in which a worker finds the socket (within a second).

        with Collector(address) as collector:
            collector.reset()
            ...                       # a trial
            evidence = collector.evidence()

    A worker sends four times a second: what happened in the last 0.3 s may be missing.

    Args:
        address: where to listen; created with mode 0600, removed at the end.

    Raises:
        MeasurementError: the socket cannot be made, or somebody listens there already.
    """

    def __init__(self, address: Path) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._tally = Tally(time.perf_counter())
        self._examples: dict[str, str] = {}
        self._recording = 0
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
        """Workers that are connected now and record: each said so after it had begun."""
        return self._recording

    def reset(self) -> None:
        """Start from nothing; requests that are under way belong to what was before."""
        with self._lock:
            self._tally = Tally(time.perf_counter())

    def evidence(self) -> Evidence:
        """What was seen since the last reset."""
        with self._lock:
            return self._tally.evidence(time.perf_counter())

    def examples(self) -> dict[str, str]:
        """Fingerprint → one text as the driver got it, for EXPLAIN.

        Without parameters; but an app that writes values into its SQL has them here: keep this in memory.
        """
        with self._lock:
            return dict(self._examples)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener, self._woken:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            connections: dict[socket.socket, _Connection] = {}
            while True:
                for key, _ in selector.select():
                    link = key.fileobj
                    assert isinstance(link, socket.socket)
                    if link is self._woken:
                        self._end(connections)
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
        """Take what is there; False when the connection is to be closed."""
        try:
            messages = connection.messages()
        except BlockingIOError:
            return True
        except (OSError, msgspec.DecodeError, _Closed):
            return False
        with self._lock:
            for message in messages:
                if isinstance(message, probe_protocol.Hello):
                    connection.worker = message.pid
                else:
                    self._add(connection, message)
        return True

    def _add(self, connection: _Connection, batch: probe_protocol.Batch) -> None:
        connection.texts.learn(batch)
        for text in batch.statements:
            if len(self._examples) < EXAMPLES:
                self._examples.setdefault(text.fingerprint, text.sql)
        self._tally.add(connection.worker, batch, connection.texts, now=time.perf_counter())

    def _end(self, connections: dict[socket.socket, _Connection]) -> None:
        for link in connections:
            link.close()
        try:
            if self._address.stat().st_ino == self._inode:  # nobody took the place meanwhile
                self._address.unlink()
        except FileNotFoundError:
            pass


class _Closed(Exception):
    """The other side went away, or sent what no probe sends."""


class _Connection:
    """One worker's stream, cut into messages."""

    def __init__(self, link: socket.socket) -> None:
        self.worker = 0
        self.texts = Texts()
        self._link = link
        self._buffer = bytearray()

    def messages(self) -> list[probe_protocol.Hello | probe_protocol.Batch]:
        """The messages that are complete by now."""
        data = self._link.recv(READ)
        if not data:
            raise _Closed
        self._buffer += data
        found = []
        while (body := self._body()) is not None:
            found.append(_DECODER.decode(body))
        return found

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
        address.chmod(0o600)  # before listen(): nobody can connect in between
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
