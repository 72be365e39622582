"""Files that requests leave behind: changes in folders, and files that processes have open for writing.

A file counts when it is still there afterwards. Logs, pipes and compiled modules do not count.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_MOST_FILES = 50_000
_MOST_READ = 500
_IGNORED_FOLDERS = {"__pycache__", "node_modules", "logs", "log"}
_IGNORED_ENDINGS = (".log", ".pyc", ".pid", ".sock")

State = tuple[int, int]  # modification time in nanoseconds, and size


def snapshot(folders: Iterable[Path], *, without: Path | None = None) -> dict[Path, State]:
    """The state of every file below ``folders``, but not below ``without``; at most 50,000."""
    found: dict[Path, State] = {}
    for folder in folders:
        for file in _walk(folder, without):
            found |= _state(file)
            if len(found) >= _MOST_FILES:
                return found
    return found


def open_files(pids: Iterable[int]) -> dict[Path, State]:
    """The state of every file that these processes have open for writing, as far as the system tells.

    Only Linux tells what a file was opened for.
    """
    import psutil

    found: dict[Path, State] = {}
    for pid in pids:
        with suppress(psutil.Error, OSError):
            for opened in psutil.Process(pid).open_files():
                if getattr(opened, "mode", "r") != "r":
                    found |= _state(Path(opened.path))
    return found


def _state(file: Path) -> dict[Path, State]:
    # app.log.2026-01-01 is a log too
    if file.name.endswith(_IGNORED_ENDINGS) or ".log." in file.name or file.parent.name in _IGNORED_FOLDERS:
        return {}
    with suppress(OSError):
        about = file.lstat()
        if stat.S_ISREG(about.st_mode):
            return {file: (about.st_mtime_ns, about.st_size)}
    return {}


def _walk(folder: Path, without: Path | None) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _IGNORED_FOLDERS
            and here / name != without
            and not os.path.ismount(here / name)
        ]
        yield from (here / name for name in names)


def changed_files(before: Mapping[Path, State], after: Mapping[Path, State]) -> list[Path]:
    """The files that are new or different."""
    return sorted(file for file, state in after.items() if before.get(file) != state)


def files_with(marks: Sequence[str], files: Sequence[Path]) -> list[Path]:
    """Those of ``files`` that have one of ``marks`` in their name or their first 64 KiB."""
    known = [mark for mark in marks if mark]
    return [file for file in files[:_MOST_READ] if _has_mark(file, known)]


def _has_mark(file: Path, marks: Sequence[str]) -> bool:
    if any(mark in file.name for mark in marks):
        return True
    with suppress(OSError), file.open("rb") as opened:
        text = opened.read(65_536)
        return any(mark.encode() in text for mark in marks)
    return False


def temporary_folder() -> Path:
    """The system's folder for temporary files."""
    return Path(tempfile.gettempdir()).resolve()
