"""Files that the app's processes write while requests run. Linux shows which process has a file open.

A file counts when it is still there afterwards: what is deleted within a request ties nobody to an instance.
Logs, pipes and the folder of Prometheus' multiprocess mode do not count.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

LINUX = sys.platform.startswith("linux")
_PAUSE_S = 0.0005
_MOST_FILES = 50_000
_MOST_READ = 500
_PASSED = {"__pycache__", "node_modules", "logs", "log"}
_ENDINGS = (".log", ".pyc", ".pid", ".sock")
_WRITES = os.O_WRONLY | os.O_RDWR

State = Mapping[Path, tuple[int, int]]  # when it was changed, in nanoseconds, and its size


def snapshot(folders: Iterable[Path], *, passed: Path | None = None) -> State:
    """Every file below ``folders``, but not below ``passed``, that could be state; at most 50,000."""
    found: dict[Path, tuple[int, int]] = {}
    for folder in folders:
        for file in _files(folder, passed):
            with suppress(OSError):
                about = file.lstat()
                if stat.S_ISREG(about.st_mode):
                    found[file] = about.st_mtime_ns, about.st_size
            if len(found) >= _MOST_FILES:
                return found
    return found


def _files(folder: Path, passed: Path | None) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _PASSED
            and here / name != passed
            and not (here / name / "pyvenv.cfg").exists()
        ]
        yield from (here / name for name in names if not _is_no_state(here / name))


def _is_no_state(file: Path) -> bool:
    # app.log.2026-01-01 is a log too
    return file.name.endswith(_ENDINGS) or ".log." in file.name or file.parent.name in _PASSED


def changed(before: State, after: State) -> list[Path]:
    """The files that are new or different."""
    return sorted(file for file, state in after.items() if before.get(file) != state)


class Watch:
    """Looks again and again which regular files some processes have open for writing, as a context manager.

    Elsewhere than on Linux, and for processes of other users, it sees nothing; :attr:`processes` says of how
    many it saw something. A file that is open for less than a millisecond is met only by repetition.

    Args:
        pids: whose files.
        passed: folders that do not count.
    """

    def __init__(self, pids: Iterable[int], *, passed: Iterable[Path] = ()) -> None:
        self._pids = tuple(pids) if LINUX else ()
        self._passed = (*passed, Path("/proc"), Path("/sys"), Path("/dev/pts"), *map(Path, self._metrics()))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="footprints", daemon=True)
        self._before: dict[Path, tuple[int, int] | None] = {}
        self._seen: set[Path] = set()
        self.processes = 0

    def __enter__(self) -> Self:
        """Remember what is open now, and begin to look."""
        readable = [pid for pid in self._pids if os.access(f"/proc/{pid}/fd", os.R_OK | os.X_OK)]
        self.processes = len(readable)
        self._pids = tuple(readable)
        self._before = {file: _state(file) for file in self._open()}
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join(5)

    def written(self) -> list[Path]:
        """The files that were written to and are still there."""
        files = self._seen | self._before.keys()
        return sorted(file for file in files if (state := _state(file)) and state != self._before.get(file))

    def _run(self) -> None:
        while not self._ended.wait(_PAUSE_S):
            self._seen.update(self._open())

    def _open(self) -> Iterator[Path]:
        for pid in self._pids:
            with suppress(OSError):
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    with suppress(OSError, ValueError):
                        file = Path(entry.path).readlink()
                        if self._counts(file) and _is_writable(pid, entry.name):
                            yield file

    def _counts(self, file: Path) -> bool:
        known = file.is_absolute() and not _is_no_state(file)
        return known and not any(file.is_relative_to(folder) for folder in self._passed)

    def _metrics(self) -> Iterator[str]:
        for pid in self._pids:
            with suppress(OSError):
                for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    name, _, value = variable.partition(b"=")
                    if name.lower() == b"prometheus_multiproc_dir" and value:
                        yield os.path.realpath(os.fsdecode(value))


def _is_writable(pid: int, descriptor: str) -> bool:
    for line in Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("flags:"):
            return bool(int(line.split()[1], 8) & _WRITES)
    return False


def _state(file: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        about = file.stat()
        if stat.S_ISREG(about.st_mode):
            return about.st_mtime_ns, about.st_size
    return None


def working_folders(pids: Iterable[int]) -> set[Path]:
    """Where processes run, as far as the system tells."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            found.add(Path(f"/proc/{pid}/cwd").readlink())
    return found


def holding(files: Sequence[Path], marks: Sequence[str]) -> list[Path]:
    """Those of ``files`` whose first 64 KiB or whose name hold one of ``marks``: the app's for sure."""
    return [
        file
        for file in files[:_MOST_READ]
        if any(mark and mark in file.name for mark in marks) or _holds(file, marks)
    ]


def _holds(file: Path, marks: Sequence[str]) -> bool:
    with suppress(OSError), file.open("rb") as opened:
        text = opened.read(65_536)
        return any(mark and mark.encode() in text for mark in marks)
    return False


def temporary() -> Path:
    """Where programs put what they need for a while."""
    return Path(tempfile.gettempdir()).resolve()
