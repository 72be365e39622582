"""Processes as the kernel shows them: which ones are ours, also when a pid has been used again.

A server is started as the leader of a session of its own. Its processes are those of that session and
the leader's descendants: PostgreSQL's backends open sessions of their own, and granian's worker lives on in
the session when its main process is killed. A pid alone proves nothing, so a leader is known by its pid *and*
its start time, and what outlives a leader must carry the stack's mark.
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


@dataclass(frozen=True, slots=True)
class Leader:
    """The first process of a session, so that nobody else can be taken for it."""

    pid: int
    identity: str

    @property
    def alive(self) -> bool:
        """Whether this very process is still running; a zombie is not."""
        return identity(self.pid) == self.identity


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identity(pid: int) -> str | None:
    """Tell the process ``pid`` from every other that ever had this number; None when it is gone or a zombie.

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


def leader_of(pid: int) -> Leader:
    """Remember the running process ``pid``; an ended one gets an identity that never matches."""
    return Leader(pid, identity(pid) or "ended")


def lives(process: psutil.Process) -> bool:
    """Whether ``process`` runs: neither gone, nor a zombie, nor another one with its pid."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _of_session(session: int) -> Iterator[psutil.Process]:
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if pid and os.getsid(pid) == session:
                yield psutil.Process(pid)


def members(leader: Leader, folder: Path) -> list[psutil.Process]:
    """The living processes of the session that ``leader`` opened, and its descendants; the leader first."""
    found: dict[int, psutil.Process] = {}
    if leader.alive:
        with suppress(psutil.Error):
            first = psutil.Process(leader.pid)
            found = {process.pid: process for process in [first, *first.children(recursive=True)]}
        found |= {process.pid: process for process in _of_session(leader.pid) if process.pid not in found}
    elif identity(leader.pid) is None:
        # A session's number is not given out again while the session has members; the mark is proof on top.
        found = {process.pid: process for process in _of_session(leader.pid) if is_marked(process, folder)}
    return [process for process in found.values() if lives(process)]


def is_marked(process: psutil.Process, folder: Path, *, programs: Collection[str] | None = None) -> bool:
    """Whether ``process`` belongs to the stack of ``folder``.

    The mark in its environment is the proof. PostgreSQL and nginx overwrite that memory with their title:
    they are known by working inside the private folder, given ``programs`` only when they run one of these.
    """
    with suppress(psutil.Error, OSError):
        if process.environ().get(MARK) == str(folder):
            return True
    with suppress(psutil.Error, OSError):
        inside = Path(process.cwd()).is_relative_to(folder)
        return inside and (programs is None or process.exe() in programs)
    return False


def marked(folder: Path, programs: Collection[str]) -> list[psutil.Process]:
    """Every living process that belongs to the stack of ``folder``, whatever its session; never this one."""
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and is_marked(process, folder, programs=programs) and lives(process)
    ]


def signal_all(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to each that still lives; psutil compares start times, so a recycled pid is spared."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def gone(
    look: Callable[[], Collection[psutil.Process]], *, within_s: float, hurry: Callable[[], bool]
) -> bool:
    """Wait until ``look`` finds no process; False when the time is over or ``hurry`` says so."""
    deadline = time.monotonic() + within_s
    while look():
        if time.monotonic() >= deadline or hurry():
            return False
        time.sleep(0.02)
    return True


# One running server as a group of processes: started together, stopped together.
KILL_WAIT_S = 5.0
"""How long the kernel may take to end what was killed; only a process stuck in a system call needs it."""


class ProcessGroup:
    """A started program and everything that it started.

    Args:
        process: the program, started as the leader of a session of its own.
        folder: the stack's private folder, which marks what belongs to it.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self.leader: Leader = leader_of(process.pid)
        self._ended = False

    @property
    def exit_status(self) -> int | None:
        """What the leader ended with, negative for a signal; None while it runs."""
        return self._process.poll()

    def members(self) -> list[psutil.Process]:
        """The living processes, the leader first. Once empty, it stays empty."""
        ended = self._process.poll() is not None  # reaps the leader: a zombie is not a server
        if self._ended:
            return []
        found = members(self.leader, self._folder)
        self._ended = ended and not found
        return found

    def pids(self) -> tuple[int, ...]:
        """The pids of :meth:`members`."""
        return tuple(process.pid for process in self.members())

    def tell(self, number: int) -> None:
        """Send the leader a signal; nothing happens when it has ended."""
        signal_all([process for process in self.members() if process.pid == self.leader.pid], number)

    def stop(
        self, *, number: int = signal.SIGTERM, grace_s: float = 2.0, hurry: Callable[[], bool] = lambda: False
    ) -> None:
        """Ask the leader to end, kill what is left after ``grace_s`` seconds, return when nothing is left.

        Args:
            number: the signal that asks; it goes to every member when the leader is already gone.
            hurry: when it says True, the grace is over at once.
        """
        # Children in sessions of their own can be found only while their parent lives.
        known = self.members()
        lone = [process for process in known if process.pid == self.leader.pid] or known
        signal_all(lone, number)
        if not gone(lambda: self._remaining(known), within_s=grace_s, hurry=hurry):
            signal_all(self._remaining(known), signal.SIGKILL)
            gone(lambda: self._remaining(known), within_s=KILL_WAIT_S, hurry=lambda: False)
        self._process.poll()  # PostgreSQL takes a leader that is not reaped for one that runs

    def _remaining(self, known: list[psutil.Process]) -> list[psutil.Process]:
        for process in self.members():
            if process not in known:
                known.append(process)
        return [process for process in known if lives(process)]
