"""A client that writes through the service and detects whether a read shows its last write."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from hashlib import sha256

from tenfold.database import replay_pause
from tenfold.errors import TargetError
from tenfold.settings.verify import VerifySettings
from tenfold.types import Server, Stack
from tenfold.verify.kit.session_user import user_of
from tenfold.verify.kit.user_agent import Answer, UserAgent

_VALUE = "{value}"


@dataclass(slots=True)
class WriteDetector:
    """Decides whether an answer shows the last write.

    With values, an answer shows it that has the value in its text. Without, every answer does that was not
    given before the write.
    """

    has_values: bool
    value: str = ""
    _older: set[bytes] = field(default_factory=set)
    _latest: set[bytes] = field(default_factory=set)

    def record_write(self, value: str) -> None:
        """Note a write: every answer so far is an old one."""
        self.value = value
        self._older |= self._latest
        self._latest = set()

    def shows_write(self, text: str) -> bool:
        """Return whether this answer shows the last write, and remember the answer."""
        if self.has_values:
            return self.value in text
        digest = sha256(text.encode()).digest()
        if digest in self._older:
            return False
        self._latest.add(digest)
        return True


@dataclass(frozen=True, slots=True)
class WriteProbe:
    """A client that writes and reads; other clients may read what it wrote, see :meth:`is_visible`."""

    settings: VerifySettings
    user: UserAgent
    detector: WriteDetector

    def write(self) -> None:
        """Send the declared write with a new value.

        Raises:
            TargetError: the answer is no 2xx, or there is none.
        """
        value = secrets.token_hex(8)
        line = self.settings.write
        answer = self.user.request(line, body=self.settings.write_body, values={"value": value})
        if not answer.ok:
            raise TargetError(f"{line} answers {answer.status}: {_remedy(answer.status, 'write')}")
        self.detector.record_write(value)

    def is_visible(self, reader: UserAgent | None = None) -> bool:
        """Return whether the declared read shows the last write, to its writer or to another reader.

        Raises:
            TargetError: the read is not answered with 2xx.
        """
        return self.detector.shows_write(send_read(self.settings, reader or self.user).text)

    def require_visible(self, stack: Stack) -> None:
        """Wait for the replicas; return when the last write is visible then.

        Raises:
            TargetError: it is not, so that the declared requests do not belong together.
        """
        wait_for_all_replicas(stack)
        if not self.is_visible():
            raise TargetError(
                f"{self.settings.read} does not show what {self.settings.write} wrote, although every "
                f"replica has it: correct verify.read, or let verify.write_body hold {_VALUE}"
            )


def probe_writes(stack: Stack, settings: VerifySettings) -> WriteProbe:
    """A write probe, once its reads have shown a write with every replica up to date.

    Raises:
        TargetError: a request is not answered, or ``read`` does not show what ``write`` wrote.
    """
    has_values = _VALUE in settings.write + settings.write_body
    probe = WriteProbe(settings, user_of(stack, settings), WriteDetector(has_values))
    first = send_read(settings, probe.user).text
    if not has_values and send_read(settings, probe.user).text != first:
        raise TargetError(
            f"{settings.read} answers differently each time: let verify.write_body hold {_VALUE}, which "
            "it shows"
        )
    probe.detector.shows_write(first)
    probe.write()
    probe.require_visible(stack)
    return probe


def send_read(settings: VerifySettings, reader: UserAgent) -> Answer:
    """Send the declared read.

    Raises:
        TargetError: the answer is no 2xx, or there is none.
    """
    answer = reader.request(settings.read)
    if not answer.ok:
        raise TargetError(f"{settings.read} answers {answer.status}: {_remedy(answer.status, 'read')}")
    return answer


def wait_for_all_replicas(stack: Stack) -> None:
    """Return when every replica has replayed what the primary has written.

    Raises:
        TargetError: one does not within 30 s.
    """
    replay_pause.wait_for_replicas(primary(stack).admin_url, [server.admin_url for server in replicas(stack)])


def primary(stack: Stack) -> Server:
    """The server that takes writes."""
    return next(server for server in stack.servers if server.kind == "primary")


def replicas(stack: Stack) -> list[Server]:
    """The primary's replicas, in their order."""
    return [server for server in stack.servers if server.kind == "replica"]


def _remedy(status: int, key: str) -> str:
    if status == 429:
        return "let the stack's instances allow more requests"
    return "see the log of the app" if status >= 500 else f"correct verify.{key}"
