"""The private folder of one stack, and every process that is started in it.

``<temporary folder>/tenfold-<uid>/<id>/`` holds data, logs and configurations. The path is short, because
that of a Unix socket may have 107 characters (103 on macOS). Every start is written into the folder's process
registry, and every process carries the folder's path as its mark, so that the next start can clean up after a
killed owner: see :mod:`tenfold.stack.cleanup`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import IO, TypeVar

import msgspec

from tenfold.errors import DependencyError, StackError
from tenfold.stack import cleanup
from tenfold.stack.logs import exit_text, failure_message
from tenfold.stack.processes import MARK, ProcessGroup, SessionLeader
from tenfold.stack.run_as import Account, closed_folder, unprivileged_account

POLL_S = 0.02
INSTANCES = "instances"
_LOCK_TIMEOUT_S = 30.0
_MAX_PARENT_LENGTH = 80  # leaves room for a socket's name in the 103 characters that macOS allows
Answer = TypeVar("Answer")


class CancelledError(StackError):
    """The start was cancelled because another server failed or the user interrupted it."""


# ------------------------------------------------------------------ the parent folder of all stacks


def create_workdir() -> WorkDir:
    """Clean up after killed owners, then make the folder of a new stack.

    Raises:
        StackError: the temporary folder cannot be used.
        DependencyError: tenfold runs as root and finds no user to run PostgreSQL as.
    """
    parent = parent_folder()
    account = unprivileged_account()
    make_private(parent, passable=account is not None)
    _refuse_unusable(parent, as_root=account is not None)
    with lock_parent(parent):
        cleanup.clean_up(parent)
        folder = parent / secrets.token_hex(4)
        make_private(folder, passable=account is not None)
        return WorkDir(folder, account)


def parent_folder() -> Path:
    """Return ``<temporary folder>/tenfold-<uid>``, private to this user; it is made when absent.

    Raises:
        StackError: another user owns it, it is a symbolic link, or others may write to it.
    """
    folder = Path(tempfile.gettempdir()).resolve() / f"tenfold-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
        raise StackError(
            f"{folder} is not a folder of yours alone, so nothing private can be kept in it: "
            "remove it, or set TMPDIR to a folder of your own"
        )
    return folder


def running_instances() -> list[str]:
    """The addresses of the app's instances in the newest stack of this user that runs; [] without one."""
    parent = parent_folder()
    newest = sorted(parent.glob(f"*/{INSTANCES}"), key=lambda file: -file.stat().st_mtime)
    for file in newest:
        registry = cleanup.read_registry(file.parent)
        if registry is not None and registry.owner.is_alive:
            with contextlib.suppress(OSError):
                return file.read_text().split()
    return []


def make_private(folder: Path, *, passable: bool) -> None:
    """Make ``folder`` for its owner alone; ``passable`` lets others pass through to their files below it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if passable:
        folder.chmod(0o711)  # not by mkdir: the umask may forbid it


def _refuse_unusable(parent: Path, *, as_root: bool) -> None:
    if len(str(parent)) > _MAX_PARENT_LENGTH:
        raise StackError(f"{parent} is too long a path for Unix sockets: set TMPDIR to a shorter one")
    closed = closed_folder(parent / "any") if as_root else None
    if closed:
        raise StackError(
            f"{closed} is closed to other users, and PostgreSQL has to run as one of them: set TMPDIR=/tmp"
        )


@contextmanager
def lock_parent(parent: Path, *, timeout_s: float = _LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock of all stacks below ``parent``; the kernel releases it when the holder is killed.

    Raises:
        StackError: another start holds it for longer than ``timeout_s`` seconds.
    """
    lock = os.open(parent / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                raise StackError(
                    f"another start has held {parent / 'lock'} for {timeout_s:g} s: end it first"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ------------------------------------------------------------------ one stack's folder


class WorkDir:
    """One stack's folder, process registry and processes; :func:`create_workdir` makes it. Thread-safe."""

    def __init__(self, folder: Path, account: Account | None) -> None:
        self.folder = folder
        self.account = account
        self._registry = cleanup.ProcessRegistry(owner=SessionLeader.of(os.getpid()))
        self._groups: list[ProcessGroup] = []
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        cleanup.write_registry(folder, self._registry)
        self.subfolder("logs")

    @property
    def probe_address(self) -> Path:
        """The Unix socket on which the app's probes look for a collector."""
        return self.folder / "probe.sock"

    def subfolder(self, name: str, *, account: Account | None = None) -> Path:
        """Make a folder below this one, private to ``account`` (None: to the user that runs tenfold).

        Root's folders can be passed through, not listed: servers below them run as other users.
        """
        folder = self.folder / name
        make_private(folder, passable=self.account is not None and account is None)
        if account:
            os.chown(folder, account.uid, account.gid)
        return folder

    def write(self, path: Path, text: str, *, account: Account | None = None) -> Path:
        """Write a new file that only ``account`` (None: the user that runs tenfold) and root may read."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            if account:
                os.fchown(file.fileno(), account.uid, account.gid)
            file.write(text)
        return path

    def log(self, name: str) -> Path:
        """Return the log file of the server or command called ``name``."""
        return self.folder / "logs" / f"{name.replace(' ', '-')}.log"

    def launch(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path,
        environment: Mapping[str, str],
        account: Account | None = None,
        stop_signal: int = SIGTERM,
    ) -> ProcessGroup:
        """Start ``command`` as a group of its own, its output in :meth:`log`.

        Args:
            name: the server or command, in messages and the name of its log.
            command: program and arguments.
            cwd: its working folder.
            environment: all of its variables; the mark is added.
            account: the user to run it as; None is the user that runs tenfold.
            stop_signal: the signal that ends it, for a later clean-up.

        Raises:
            DependencyError: the program cannot be executed.
            CancelledError: this start was cancelled.
        """
        with self._lock, self.log(name).open("ab") as log:
            self._raise_if_cancelled()
            group = ProcessGroup(self._popen(command, cwd, environment, account, log), self.folder)
            self._groups.append(group)
            entry = cleanup.RegisteredProgram(name, group.leader, stop_signal)
            programs = {*self._registry.programs, os.path.realpath(command[0])}
            self._registry = msgspec.structs.replace(
                self._registry, programs=tuple(programs), entries=(*self._registry.entries, entry)
            )
            cleanup.write_registry(self.folder, self._registry)
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
        """Run ``command`` to its end, and end every process that it started.

        Raises:
            StackError: it failed or took longer than ``timeout_s`` seconds; the message has its last lines.
        """
        group = self.launch(name, command, cwd=cwd, environment=environment, account=account)
        try:
            status = self.wait(lambda: group.exit_status, timeout_s=timeout_s)
        finally:
            group.stop(grace_s=0.5)
        if status is None:
            raise StackError(failure_message(f"{name} did not end within {timeout_s:g} s", self.log(name)))
        if status != 0:
            raise StackError(failure_message(f"{name} failed ({exit_text(status)})", self.log(name)))

    def wait(self, look: Callable[[], Answer | None], *, timeout_s: float) -> Answer | None:
        """Call ``look`` until it returns an answer; None after ``timeout_s`` seconds.

        Raises:
            CancelledError: this start was cancelled.
        """
        deadline = time.monotonic() + timeout_s
        while (answer := look()) is None and time.monotonic() < deadline:
            self._raise_if_cancelled()
            time.sleep(POLL_S)
        return answer

    def cancel(self) -> None:
        """Cancel the start: nothing more is launched."""
        with self._lock:
            self._cancelled.set()

    def _raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError("the start was cancelled")

    def close(self) -> None:
        """End every process that was started here, and remove the folder."""
        self.cancel()
        cleanup.end_processes(self.folder, self._registry)
        for group in self._groups:
            group.members()  # reaps the leaders: they are children of this process
        cleanup.remove_folder(self.folder)


def _cannot_run(program: str, account: Account | None, error: OSError) -> str:
    closed = closed_folder(Path(program)) if account and isinstance(error, PermissionError) else None
    if account and closed:
        return (
            f"{program} cannot be run as user {account.name}, because {closed} is closed to other users: "
            "install tenfold outside of it, or run it as an ordinary user"
        )
    return f"{program} cannot be run ({error.strerror or error}): reinstall it or name another one in [stack]"
