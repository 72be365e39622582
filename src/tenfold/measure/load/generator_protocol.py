"""The protocol between the measuring process and the generator's process: JSON over a socket pair.

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


class LoadScenario(msgspec.Struct, tag=True):
    """Load a locustfile; comes first."""

    scenario: str
    target: str
    max_users: int
    spawn_rate: float
    slow_ms: float


class StartUsers(msgspec.Struct, tag=True):
    """Log users in until there are ``users`` of them, or ``timeout_s`` is over."""

    users: int
    timeout_s: float


class RunOpenLoop(msgspec.Struct, tag=True):
    """Run an open-loop trial."""

    rate: float
    duration_s: float
    seed: int
    settle_s: float
    overload: bool
    login_s: float = 5.0


class RunClosedLoop(msgspec.Struct, tag=True):
    """Run a trial at Locust's own pace."""

    users: int
    spawn_rate: float
    duration_s: float


class RunOneAtATime(msgspec.Struct, tag=True):
    """Run a trial of one arrival at a time."""

    rate: float  # arrivals per second, at most
    duration_s: float
    seed: int
    idle_s: float  # longest wait at the beginning until every request of earlier trials is answered
    login_s: float = 5.0


class StopUsers(msgspec.Struct, tag=True):
    """Stop every user; StartUsers follows."""


class Calibrate(msgspec.Struct, tag=True):
    """Measure how much one core can send to ``url``, a server that does nothing."""

    url: str
    seconds: float


class Stop(msgspec.Struct, tag=True):
    """End the running trial now; without ``settle`` do not wait for unanswered requests."""

    settle: bool


class Close(msgspec.Struct, tag=True):
    """End the users and the process."""


class ScenarioLoaded(msgspec.Struct, tag=True):
    """The locustfile is loaded."""

    user_classes: list[str]
    client: str  # the costliest kind among them: "HttpUser", "FastHttpUser" or "User"
    ignored_shape: str = ""  # the name of its LoadTestShape


class CommandFailed(msgspec.Struct, tag=True):
    """A command failed; ``kind`` names a class of tenfold.errors."""

    kind: str
    message: str


class UsersStarted(msgspec.Struct, tag=True):
    """``users`` are logged in; ``failed`` did not get through ``on_start``."""

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
    silent: Mapping[str, int] = msgspec.field(default_factory=dict)  # arrivals without a request, by task
    unended: Mapping[str, int] = msgspec.field(default_factory=dict)  # arrivals whose task does not end
    task_s: float = 0.0


class CalibrationDone(msgspec.Struct, tag=True):
    """Arrivals per second of one core's time; 0 when the scenario has clients of its own."""

    rate: float


Message = (
    LoadScenario
    | StartUsers
    | RunOpenLoop
    | RunClosedLoop
    | RunOneAtATime
    | StopUsers
    | Calibrate
    | Stop
    | Close
    | ScenarioLoaded
    | CommandFailed
    | UsersStarted
    | BlockDone
    | TrialDone
    | CalibrationDone
)


class GeneratorConnection:
    """One end of the socket pair. Many threads may send, one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._pending = bytearray()
        self._sending = threading.Lock()
        self._decoder = msgspec.json.Decoder(Message)

    def send(self, message: Message) -> None:
        """Send one message.

        Raises:
            OSError: the other end is gone.
        """
        body = msgspec.json.encode(message)
        with self._sending:
            self._socket.settimeout(None)
            self._socket.sendall(_LENGTH.pack(len(body)) + body)

    def receive(self, timeout_s: float | None = None) -> Message:
        """Wait for the next message and return it.

        Raises:
            TimeoutError: none came in time; a part that has come is kept for the next call.
            EOFError: the other end is gone, or sent something that is no message.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (body := self._next_body()) is None:
            self._read(None if deadline is None else deadline - time.monotonic())
        try:
            message: Message = self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise EOFError("not a message of the generator") from error
        return message

    def close(self) -> None:
        """Close this end; the other one notices."""
        self._socket.close()

    def _next_body(self) -> bytes | None:
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
