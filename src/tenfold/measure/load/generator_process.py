"""The generator's process: starting it, talking to it, and ending it with everything that it started."""

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
from tenfold.measure.load.generator_protocol import Close, CommandFailed, GeneratorConnection, Message

CLOSE_S = 3.0
MAX_LOG = 4 * 1024 * 1024
LAST_LINES = 5


class GeneratorProcess:
    """One run of ``python -m tenfold.measure.load.locust``.

    It has its own session, so that Ctrl-C does not reach it, and it exits when this process's end of the
    socket closes, so that it does not outlive this process. What the locustfile prints goes to a file without
    a name, which is truncated when it grows beyond ``MAX_LOG`` bytes.
    """

    def __init__(self, *, environ: Mapping[str, str] | None, cwd: Path | None) -> None:
        self._environ = environ
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: GeneratorConnection | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id, also that of its process group; 0 before it was started."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the process; it waits for a first message."""
        here, there = socket.socketpair()
        self._connection = GeneratorConnection(here)
        self._log = _log_file()
        with there:
            self._process = subprocess.Popen(  # noqa: S603 - tenfold's own module
                [
                    sys.executable,
                    "-P",
                    "-u",
                    "-m",
                    "tenfold.measure.load.locust",
                    "--fd",
                    str(there.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=self._cwd,
                env=None if self._environ is None else dict(self._environ),
                pass_fds=(there.fileno(),),
                start_new_session=True,
            )

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            MeasurementError: the process ended, or was never started.
        """
        if self._connection is None:
            raise MeasurementError("the generator is not running; use it inside its with block")
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._ended() from error

    def receive(self, timeout_s: float) -> Message:
        """Wait for the next message and return it; raise the failure that it reports.

        Raises:
            TenfoldError: the generator reports that a command failed.
            MeasurementError: the process ended, or does not answer in time.
        """
        assert self._connection is not None
        try:
            message = self._connection.receive(max(timeout_s, 0.001))
        except TimeoutError as error:
            raise MeasurementError(
                "the generator does not answer; look for code in the locustfile that blocks"
                + self._last_lines()
            ) from error
        except EOFError as error:
            raise self._ended() from error
        self._trim_log()
        if isinstance(message, CommandFailed):
            raise getattr(errors, message.kind, MeasurementError)(message.message)
        return message

    def close(self) -> None:
        """End the users and the process with all that it started. Safe to call twice."""
        try:
            self._end_users()
        finally:
            self.kill()
            if self._connection is not None:
                self._connection.close()
            if self._log is not None:
                self._log.close()
            self._connection = self._log = None

    def kill(self) -> None:
        """Kill the process and everything that it started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _end_users(self) -> None:
        """Let ``on_stop`` and the listeners of ``test_stop`` run, but not for long."""
        if self._process is None or self._connection is None or self._process.poll() is not None:
            return
        with suppress(OSError, subprocess.TimeoutExpired):
            self._connection.send(Close())
            self._process.wait(CLOSE_S)

    def _ended(self) -> MeasurementError:
        code = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(CLOSE_S)
        how = f"by {signal.Signals(-code).name}" if code and code < 0 else f"with exit code {code}"
        return MeasurementError(f"the generator's process was ended {how}; start again{self._last_lines()}")

    def _last_lines(self) -> str:
        """The last lines that it printed, for the end of an error message."""
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
