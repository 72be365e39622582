"""Lower priority for the servers of a stack than for the generator that loads them.

On a machine that the service fills, arrivals would leave late, and the generator would be blamed. Niceness
alone does nothing between processes of different sessions where the kernel groups them (``sched_autogroup``,
sched(7)): the group has a niceness of its own. An ordinary user may change one group in 100 ms.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tenfold.measure.machine import processes
from tenfold.measure.machine.sampling_thread import SamplingThread

__all__ = ["LowPriority"]

NICENESS = 10
_INTERVAL_S = 0.11


class LowPriority(SamplingThread):
    """Lower the priority of process trees while entered, of new processes too. It is not raised again.

    Args:
        roots: callables that return the current root pids; one that fails is left out that time.
    """

    def __init__(self, roots: Iterable[Callable[[], Sequence[int]]]) -> None:
        self._roots = tuple(roots)
        self._done: set[tuple[int, float]] = set()
        super().__init__(name="tenfold-priority")

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            for pid, started in self._new():
                if not _lower(pid):
                    break  # one group in 100 ms
                self._done.add((pid, started))

    def _new(self) -> list[tuple[int, float]]:
        everything = processes.snapshot()
        found: list[tuple[int, float]] = []
        for pids in self._roots:
            with suppress(Exception):  # a server that is being replaced
                found += [(each.pid, each.started) for each in processes.tree(everything, pids()).values()]
        return [one for one in found if one not in self._done]


def _lower(pid: int) -> bool:
    """Lower one process, its threads and its group; False if the kernel wants it tried again."""
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, int(task.name), NICENESS)
    try:
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))
    except OSError as error:
        return error.errno != errno.EAGAIN
    return True
