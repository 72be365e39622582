"""The folder that holds all stacks of a user: who may enter it, and one at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenfold.errors import StackError
from tenfold.stack import remains
from tenfold.stack.account import closed_folder, unprivileged
from tenfold.stack.place import Place, make_private

_LOCK_WITHIN_S = 30.0
_LONGEST_FOLDER = 80  # leaves room for a socket's name in the 103 characters that macOS allows


def parent_folder() -> Path:
    """``<temporary folder>/tenfold-<uid>``, made when absent: ours alone, or it is refused.

    Raises:
        StackError: somebody else made it, it is a symbolic link, or others may write to it.
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


@contextmanager
def locked(parent: Path, *, within_s: float = _LOCK_WITHIN_S) -> Iterator[None]:
    """Hold the lock of all stacks below ``parent``; the kernel releases it when the holder is killed.

    Raises:
        StackError: another start holds it for longer than ``within_s`` seconds.
    """
    lock = os.open(parent / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + within_s
    try:
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                raise StackError(f"another start has held {parent / 'lock'} for {within_s:g} s: end it first")
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


def create() -> Place:
    """Clean up after killed owners, then make the folder of a new stack.

    Raises:
        StackError: the temporary folder cannot be used.
        DependencyError: tenfold runs as root and finds no user to run PostgreSQL as.
    """
    parent = parent_folder()
    account = unprivileged()
    make_private(parent, passable=account is not None)
    _refuse_unusable(parent, others=account is not None)
    with locked(parent):
        remains.clean(parent)
        folder = parent / secrets.token_hex(4)
        make_private(folder, passable=account is not None)
        return Place(folder, account)


def _refuse_unusable(parent: Path, *, others: bool) -> None:
    if len(str(parent)) > _LONGEST_FOLDER:
        raise StackError(f"{parent} is too long a path for Unix sockets: set TMPDIR to a shorter one")
    closed = closed_folder(parent / "any") if others else None
    if closed:
        raise StackError(
            f"{closed} is closed to other users, and PostgreSQL has to run as one of them: set TMPDIR=/tmp"
        )
