"""The private folder of one stack, and everything that is started in it.

``<temporary folder>/tenfold-<uid>/<id>/`` holds data, logs and configurations. It is short, because a Unix
socket's path may have 107 characters (103 on macOS). Every start is written into the folder's ledger, and
every process carries the folder's path as its mark; :mod:`tenfold.stack.remains` says what that is good for.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import SIGTERM
from typing import IO, TypeVar

import msgspec

from tenfold.errors import DependencyError, StackError
from tenfold.stack import ledger, remains
from tenfold.stack.account import Account, closed_folder
from tenfold.stack.group import ProcessGroup
from tenfold.stack.logs import ending, failure
from tenfold.stack.processes import MARK, leader_of

POLL_S = 0.02
Answer = TypeVar("Answer")


class CancelledError(StackError):
    """The start was given up because another server failed or the user interrupted it."""


class Place:
    """One stack's folder, ledger and processes; :mod:`tenfold.stack.premises` makes it. Thread-safe."""

    def __init__(self, folder: Path, account: Account | None) -> None:
        self.folder = folder
        self.account = account
        self._ledger = ledger.Ledger(owner=leader_of(os.getpid()))
        self._groups: list[ProcessGroup] = []
        self._guard = threading.Lock()
        self._cancelled = threading.Event()
        ledger.write(folder, self._ledger)
        self.subfolder("logs")

    @property
    def probe_address(self) -> Path:
        """Where the app's probes look for a collector."""
        return self.folder / "probe.sock"

    def subfolder(self, name: str, *, account: Account | None = None) -> Path:
        """Make a folder below this one, open to ``account`` only (None: to whom tenfold runs as).

        Root's folders can be passed through, not listed: servers below them run as somebody else.
        """
        folder = self.folder / name
        make_private(folder, passable=self.account is not None and account is None)
        if account:
            os.chown(folder, account.uid, account.gid)
        return folder

    def write(self, path: Path, text: str, *, account: Account | None = None) -> Path:
        """Write a file that only ``account`` (None: whom tenfold runs as) and root may read."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            if account:
                os.fchown(file.fileno(), account.uid, account.gid)
            file.write(text)
        return path

    def log(self, name: str) -> Path:
        """The log file of the server or command called ``name``."""
        return self.folder / "logs" / f"{name.replace(' ', '-')}.log"

    def check(self) -> None:
        """Raise CancelledError when this start was given up."""
        if self._cancelled.is_set():
            raise CancelledError("the start was given up")

    def cancel(self) -> None:
        """Let nothing more be started."""
        with self._guard:
            self._cancelled.set()

    def launch(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        account: Account | None = None,
        number: int = SIGTERM,
    ) -> ProcessGroup:
        """Start ``command`` as a group of its own, its output in :meth:`log`.

        Args:
            environment: all of its variables; the mark is added.
            account: whom it runs as; None is whom tenfold runs as.
            number: the signal that ends it, for whoever has to clean up.

        Raises:
            DependencyError: the program cannot be executed.
            CancelledError: this start was given up.
        """
        with self._guard, self.log(name).open("ab") as log:
            self.check()
            group = ProcessGroup(self._popen(command, cwd, environment, account, log), self.folder)
            self._groups.append(group)
            entry = ledger.Entry(name, group.leader, number)
            programs = {*self._ledger.programs, os.path.realpath(command[0])}
            self._ledger = msgspec.structs.replace(
                self._ledger, programs=tuple(programs), entries=(*self._ledger.entries, entry)
            )
            ledger.write(self.folder, self._ledger)
        return group

    def _popen(
        self,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        account: Account | None,
        log: IO[bytes],
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(  # noqa: S603 - a list, and no shell
                list(command),
                cwd=cwd,
                env={**environment, MARK: str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
            )
        except OSError as error:
            raise DependencyError(_cannot_run(command[0], account, error)) from error

    def run(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        timeout_s: float,
        account: Account | None = None,
    ) -> None:
        """Run ``command`` to its end, and whatever it started.

        Raises:
            StackError: it failed or took longer than ``timeout_s`` seconds; the message has its last lines.
        """
        group = self.launch(name, command, cwd=cwd, environment=environment, account=account)
        try:
            status = self.wait(lambda: group.exit_status, timeout_s=timeout_s)
        finally:
            group.stop(grace_s=0.5)
        if status is None:
            raise StackError(failure(f"{name} did not end within {timeout_s:g} s", self.log(name)))
        if status != 0:
            raise StackError(failure(f"{name} failed ({ending(status)})", self.log(name)))

    def wait(self, look: Callable[[], Answer | None], *, timeout_s: float) -> Answer | None:
        """Ask ``look`` until it has an answer; None when the time is over, CancelledError when cancelled."""
        deadline = time.monotonic() + timeout_s
        while (answer := look()) is None and time.monotonic() < deadline:
            self.check()
            time.sleep(POLL_S)
        return answer

    def close(self) -> None:
        """End every process that was started here, whatever became of it, and remove the folder."""
        self.cancel()
        remains.end(self.folder, self._ledger)
        for group in self._groups:
            group.members()  # reaps the leaders: they are children of this process
        remains.remove(self.folder)


def make_private(folder: Path, *, passable: bool) -> None:
    """Make ``folder`` for its owner alone; ``passable`` lets others through to what is theirs below it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if passable:
        folder.chmod(0o711)  # not by mkdir: the umask may forbid it


def _cannot_run(program: str, account: Account | None, error: OSError) -> str:
    closed = closed_folder(Path(program)) if account and isinstance(error, PermissionError) else None
    if account and closed:
        return (
            f"{program} cannot be run as user {account.name}, because {closed} is closed to other users: "
            "install tenfold outside of it, or run it as an ordinary user"
        )
    return f"{program} cannot be run ({error.strerror or error}): reinstall it or name another one in [stack]"
