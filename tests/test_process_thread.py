"""A thread that belongs to one process."""

from __future__ import annotations

import os
import threading

import pytest

from tenfold.process_thread import ProcessThread


class Worker(ProcessThread):
    def __init__(self) -> None:
        super().__init__(name="worker")
        self.prepared = 0
        self.ran = threading.Event()

    def _prepare(self) -> None:
        self.prepared += 1
        self.ran = threading.Event()

    def _run(self, stopping: threading.Event) -> None:
        self.ran.set()
        stopping.wait(30)


def threads() -> int:
    return sum(thread.name == "worker" for thread in threading.enumerate())


def test_it_runs_once_from_start_to_stop() -> None:
    worker = Worker()
    worker.stop()
    for _ in range(3):
        worker.start()
    assert worker.ran.wait(5) and (threads(), worker.prepared) == (1, 1)
    worker.stop()
    assert threads() == 0
    worker.start()
    assert worker.ran.wait(5) and threads() == 1
    worker.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_starts_its_own() -> None:
    worker = Worker()
    worker.start()
    assert worker.ran.wait(5)
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            worker.start()
            os.write(writer, b"ok" if worker.ran.wait(5) and worker.prepared == 2 else b"no")
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 2) == b"ok"
    os.close(reader)
    os.waitpid(pid, 0)
    worker.stop()
