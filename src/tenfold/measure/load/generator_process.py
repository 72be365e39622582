"""The process that Locust lives in: started, spoken to, and ended with everything that it started."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from tenfold import errors
from tenfold.errors import MeasurementError
from tenfold.measure.load.generator_protocol import Channel, Close, Failed, Message

CLOSE_S = 3.0
MAX_LOG = 4 * 1024 * 1024
LAST_LINES = 5


class GeneratorProcess:
    """One run of ``python -m tenfold.measure.load.locust``.

    It has its own session, so that Ctrl-C reaches only us, and it exits when our end of the socket closes,
    so that it does not outlive us. What the locustfile prints goes to a file without a name; when that
    grows beyond ``MAX_LOG`` bytes it is cut.
    """

    def __init__(self, *, environ: Mapping[str, str] | None, cwd: Path | None) -> None:
        self._environ = environ
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """The leader of its process group; 0 before it was started."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it; it waits for a first message."""
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._log = _log_file()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    sys.executable,
                    "-P",
                    "-u",
                    "-m",
                    "tenfold.measure.load.locust",
                    "--fd",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=self._cwd,
                env=None if self._environ is None else dict(self._environ),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            MeasurementError: the process ended, or was never started.
        """
        if self._channel is None:
            raise MeasurementError("the generator is not running; use it inside its with block")
        try:
            self._channel.send(message)
        except OSError as error:
            raise self._ended() from error

    def receive(self, timeout_s: float) -> Message:
        """The next message; a failure that it reports is raised here.

        Raises:
            TenfoldError: what the generator says went wrong.
            MeasurementError: the process ended, or does not answer in time.
        """
        assert self._channel is not None
        try:
            message = self._channel.receive(max(timeout_s, 0.001))
        except TimeoutError as error:
            raise MeasurementError(
                "the generator does not answer; look for code in the locustfile that blocks"
                + self._last_words()
            ) from error
        except EOFError as error:
            raise self._ended() from error
        self._trim_log()
        if isinstance(message, Failed):
            raise getattr(errors, message.kind, MeasurementError)(message.message)
        return message

    def close(self) -> None:
        """End the users and the process; nothing is left running. Safe to call twice."""
        try:
            self._say_goodbye()
        finally:
            self.kill()
            if self._channel is not None:
                self._channel.close()
            if self._log is not None:
                self._log.close()
            self._channel = self._log = None

    def kill(self) -> None:
        """End the process and whatever it started, at once."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _say_goodbye(self) -> None:
        """Let ``on_stop`` and the listeners of ``test_stop`` run, but not for long."""
        if self._process is None or self._channel is None or self._process.poll() is not None:
            return
        with suppress(OSError, subprocess.TimeoutExpired):
            self._channel.send(Close())
            self._process.wait(CLOSE_S)

    def _ended(self) -> MeasurementError:
        code = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(CLOSE_S)
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with exit code {code}"
        return MeasurementError(f"the generator's process was ended {how}; start again{self._last_words()}")

    def _last_words(self) -> str:
        """What it wrote last, for the end of a sentence."""
        if self._log is None:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()][-LAST_LINES:]
        return f" (its last words: {' | '.join(lines)})" if lines else ""

    def _trim_log(self) -> None:
        if self._log is not None and os.fstat(self._log.fileno()).st_size > MAX_LOG:
            os.ftruncate(self._log.fileno(), 0)


def _log_file() -> IO[bytes]:
    """A file without a name, appended to, so that it can be cut while the generator writes."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process that writes to it
    flags = fcntl.fcntl(log.fileno(), fcntl.F_GETFL)
    fcntl.fcntl(log.fileno(), fcntl.F_SETFL, flags | os.O_APPEND)
    return log
