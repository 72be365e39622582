"""A proxy for a server that stalls, is shut, or cuts the connection at a certain message."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Proxy:
    """A proxy on a free port. A message with ``cut_at`` in it is passed on, its answer is not."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.cut_at: bytes | None = None
        self.cuts = 0
        self.flows = threading.Event()  # cleared, it stalls: connections stay open and nothing goes by
        self.flows.set()
        self._is_shut = False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_shut:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                cut = threading.Event()
                self._open |= {client, server}
                for one, other, sends in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=(one, other, cut, sends), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, cut: threading.Event, sends: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self.flows.wait()
                if sends and self.cut_at and self.cut_at in data:
                    self.cuts += 1
                    cut.set()
                    other.sendall(data)
                    one.shutdown(socket.SHUT_RDWR)
                    return
                if cut.is_set():
                    break
                other.sendall(data)
        self._end(one, other)

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            self._open.discard(end)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Pass nothing on until the end of the block."""
        self.flows.clear()
        try:
            yield
        finally:
            self.flows.set()

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """Close all connections until the end of the block: what was on its way is lost."""
        self._is_shut = True
        self._end(*list(self._open))
        try:
            yield
        finally:
            self._is_shut = False

    def close(self) -> None:
        self.flows.set()
        self._listener.close()
