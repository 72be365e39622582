"""What the measuring process and the generator say to each other: JSON values over a socket pair.

Each message is four bytes of length, big-endian, and its JSON. No pickle: a locustfile runs on the other
side. Not stdout either: locustfiles print.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Mapping

import msgspec

from tenfold.measure.trial import Block, Endpoint, GeneratorHealth

MAX_MESSAGE = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Load(msgspec.Struct, tag=True):
    """Load a locustfile."""

    scenario: str
    target: str
    max_users: int
    spawn_rate: float
    slow_ms: float


class StartUsers(msgspec.Struct, tag=True):
    """Log users in until there are so many."""

    users: int


class Run(msgspec.Struct, tag=True):
    """An open-loop trial."""

    rate: float
    duration_s: float
    seed: int
    settle_s: float
    overload: bool


class RunClosed(msgspec.Struct, tag=True):
    """A trial with Locust's own pace."""

    users: int
    spawn_rate: float
    duration_s: float


class Calibrate(msgspec.Struct, tag=True):
    """Find out how much one core can send to a server that does nothing."""

    url: str
    seconds: float


class Stop(msgspec.Struct, tag=True):
    """End the running trial now."""

    settle: bool


class Close(msgspec.Struct, tag=True):
    """End the users, and yourself."""


class Loaded(msgspec.Struct, tag=True):
    """The locustfile is loaded."""

    user_classes: list[str]
    client: str  # the costliest kind among them: "HttpUser", "FastHttpUser" or "User"


class Failed(msgspec.Struct, tag=True):
    """Something could not be done; ``kind`` names a class of tenfold.errors."""

    kind: str
    message: str


class Started(msgspec.Struct, tag=True):
    """So many users are logged in; so many did not get through."""

    users: int
    failed: int


class BlockDone(msgspec.Struct, tag=True):
    """A block became final."""

    block: Block


class TrialDone(msgspec.Struct, tag=True):
    """The trial is over; its blocks were sent before."""

    seconds: float
    settled_s: float
    generator: GeneratorHealth
    endpoints: tuple[Endpoint, ...]
    corrected: str
    raw: str
    users: int
    requests: int
    errors: Mapping[str, int]
    notes: Mapping[str, int]


class Ceiling(msgspec.Struct, tag=True):
    """Arrivals per second of one core's time; 0 when the scenario has clients of its own."""

    rate: float


Message = (
    Load
    | StartUsers
    | Run
    | RunClosed
    | Calibrate
    | Stop
    | Close
    | Loaded
    | Failed
    | Started
    | BlockDone
    | TrialDone
    | Ceiling
)


class Channel:
    """One end of the socket pair. Many may send, one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._pending = bytearray()
        self._sending = threading.Lock()
        self._decoder = msgspec.json.Decoder(Message)

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            OSError: when the other end is gone.
        """
        body = msgspec.json.encode(message)
        with self._sending:
            self._socket.settimeout(None)
            self._socket.sendall(_LENGTH.pack(len(body)) + body)

    def receive(self, timeout_s: float | None = None) -> Message:
        """The next message.

        Raises:
            TimeoutError: when none came in time; what has come of one is kept for the next call.
            EOFError: when the other end is gone, or sent what is no message.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (body := self._take()) is None:
            self._read(None if deadline is None else deadline - time.monotonic())
        try:
            message: Message = self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise EOFError("not a message of the generator") from error
        return message

    def close(self) -> None:
        """Hang up; the other end notices."""
        self._socket.close()

    def _take(self) -> bytes | None:
        if len(self._pending) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._pending)
        if length > MAX_MESSAGE:
            raise EOFError("a message of the generator is too long")
        end = _LENGTH.size + length
        if len(self._pending) < end:
            return None
        body = bytes(self._pending[_LENGTH.size : end])
        del self._pending[:end]
        return body

    def _read(self, timeout_s: float | None) -> None:
        if timeout_s is not None and timeout_s <= 0:
            raise TimeoutError
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(1 << 16)
        except ConnectionError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        self._pending += data
