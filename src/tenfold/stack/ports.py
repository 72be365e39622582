"""Free ports on loopback."""

from __future__ import annotations

import secrets
import socket

from tenfold.errors import StackError

HOST = "127.0.0.1"
# Below the range of the ports of outgoing connections (Linux: from 32768), so that no connection of a load
# generator can take a port between the moment it is chosen and the moment a server listens on it.
_FIRST, _LAST = 15_000, 32_000


def is_free(port: int) -> bool:
    """Return whether a server could listen on ``port`` of loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no obstacle
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port that is free now; bind it soon."""
    while True:
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if is_free(port):
            return port


def require_free(port: int) -> int:
    """Return ``port`` if a server could listen on it; 0 stays 0.

    Raises:
        StackError: another program listens there.
    """
    if port and not is_free(port):
        raise StackError(
            f"port {port} is taken by another program: end it, or choose another with --port "
            "(--port 0 takes a free one)"
        )
    return port
