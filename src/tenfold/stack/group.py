"""One running server as a group of processes: started together, stopped together."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil

from tenfold.stack.processes import Leader, gone, leader_of, lives, members, signal_all

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
