"""Process groups: which processes belong to a server of the stack, even after its pid was reused.

A server is started as the leader of a session of its own. Its processes are those of that session and the
leader's descendants: PostgreSQL's backends open sessions of their own, and granian's worker lives on in the
session when its main process is killed. A pid alone proves nothing, so a leader is known by its pid *and* its
start time, and a process that outlives its leader must carry the stack's mark.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

MARK = "_TENFOLD_STACK"
"""The variable that every process of a stack inherits: the path of its private folder."""

KILL_WAIT_S = 5.0
"""Seconds to wait for a killed process; only one stuck in a system call needs them."""


# ------------------------------------------------------------------ single processes


@dataclass(frozen=True, slots=True)
class SessionLeader:
    """The first process of a session, by pid and identity, so that no later process is mistaken for it."""

    pid: int
    identity: str

    @classmethod
    def of(cls, pid: int) -> SessionLeader:
        """Return the running process ``pid``; an ended one gets an identity that never matches."""
        return cls(pid, process_identity(pid) or "ended")

    @property
    def is_alive(self) -> bool:
        """True while this very process is running; a zombie is not."""
        return process_identity(self.pid) == self.identity


def process_identity(pid: int) -> str | None:
    """Return a text that no other process with this pid ever has; None if it is gone or a zombie.

    On Linux this is the boot's id and the start in clock ticks since then: psutil's creation time is
    calendar time and moves when the clock is set.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if not psutil.LINUX:
            return f"{process.create_time():.2f}"
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{_boot_id()}/{int(fields[19])}"
    except (psutil.Error, OSError):
        return None


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_running(process: psutil.Process) -> bool:
    """Return whether ``process`` runs: neither gone, nor a zombie, nor another one with its pid."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def is_marked(process: psutil.Process, folder: Path, *, programs: Collection[str] | None = None) -> bool:
    """Return whether ``process`` belongs to the stack of ``folder``.

    The proof is the mark in its environment. PostgreSQL and nginx overwrite that memory with their title:
    they are known by working inside the private folder, given ``programs`` only when they run one of these.
    """
    with suppress(psutil.Error, OSError):
        if process.environ().get(MARK) == str(folder):
            return True
    with suppress(psutil.Error, OSError):
        inside = Path(process.cwd()).is_relative_to(folder)
        return inside and (programs is None or process.exe() in programs)
    return False


# ------------------------------------------------------------------ several processes


def group_members(leader: SessionLeader, folder: Path) -> list[psutil.Process]:
    """Return the running processes of the leader's session and its descendants; the leader first."""
    found: dict[int, psutil.Process] = {}
    if leader.is_alive:
        with suppress(psutil.Error):
            first = psutil.Process(leader.pid)
            found = {process.pid: process for process in [first, *first.children(recursive=True)]}
        found |= {process.pid: process for process in _session(leader.pid) if process.pid not in found}
    elif process_identity(leader.pid) is None:
        # A session's number is not reused while the session has members; the mark is additional proof.
        found = {process.pid: process for process in _session(leader.pid) if is_marked(process, folder)}
    return [process for process in found.values() if is_running(process)]


def _session(session: int) -> Iterator[psutil.Process]:
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if pid and os.getsid(pid) == session:
                yield psutil.Process(pid)


def find_marked(folder: Path, programs: Collection[str]) -> list[psutil.Process]:
    """Return every running process of the stack in ``folder``, in any session, except this process."""
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid()
        and is_marked(process, folder, programs=programs)
        and is_running(process)
    ]


def signal_all(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to each that still runs; psutil compares start times, so a reused pid gets none."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def never() -> bool:
    """Return False: the default of ``interrupted`` arguments."""
    return False


def wait_until_gone(
    find: Callable[[], Collection[psutil.Process]],
    *,
    timeout_s: float,
    interrupted: Callable[[], bool] = never,
) -> bool:
    """Wait until ``find`` returns no process; False after ``timeout_s`` seconds or when ``interrupted()``."""
    deadline = time.monotonic() + timeout_s
    while find():
        if time.monotonic() >= deadline or interrupted():
            return False
        time.sleep(0.02)
    return True


class ProcessGroup:
    """A started program and every process that it started.

    Args:
        process: the program, started as the leader of a session of its own.
        folder: the stack's private folder, which marks its processes.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self.leader = SessionLeader.of(process.pid)
        self._ended = False

    @property
    def exit_status(self) -> int | None:
        """The leader's exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def members(self) -> list[psutil.Process]:
        """Return the running processes, the leader first. Once empty, it stays empty."""
        ended = self._process.poll() is not None  # reaps the leader: a zombie is not a server
        if self._ended:
            return []
        found = group_members(self.leader, self._folder)
        self._ended = ended and not found
        return found

    def pids(self) -> tuple[int, ...]:
        """Return the pids of :meth:`members`."""
        return tuple(process.pid for process in self.members())

    def signal_leader(self, number: int) -> None:
        """Send the leader a signal, if it still runs."""
        signal_all([process for process in self.members() if process.pid == self.leader.pid], number)

    def stop(
        self,
        *,
        number: int = signal.SIGTERM,
        grace_s: float = 2.0,
        interrupted: Callable[[], bool] = never,
    ) -> None:
        """Ask the leader to end, kill what still runs after ``grace_s`` seconds, return when nothing runs.

        Args:
            number: the signal that asks; it goes to every member when the leader is already gone.
            grace_s: seconds until SIGKILL.
            interrupted: when it returns True, the grace is over at once.
        """
        # Children in sessions of their own can be found only while their parent lives.
        known = self.members()
        leader = [process for process in known if process.pid == self.leader.pid]
        signal_all(leader or known, number)
        if not wait_until_gone(lambda: self._remaining(known), timeout_s=grace_s, interrupted=interrupted):
            signal_all(self._remaining(known), signal.SIGKILL)
            wait_until_gone(lambda: self._remaining(known), timeout_s=KILL_WAIT_S)
        self._process.poll()  # PostgreSQL takes a leader that is not reaped for one that runs

    def _remaining(self, known: list[psutil.Process]) -> list[psutil.Process]:
        for process in self.members():
            if process not in known:
                known.append(process)
        return [process for process in known if is_running(process)]
