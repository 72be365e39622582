"""Files that requests leave behind: changes in folders, and files that processes have open for writing.

A file counts when it is still there afterwards. Logs, pipes and compiled modules do not count. Changes are
found by ``st_ctime``: new, renamed and rewritten files have a new one, and no program can set it back.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

_MOST_READ = 500
_IGNORED_FOLDERS = {"__pycache__", "node_modules", "logs", "log"}
_IGNORED_ENDINGS = (".log", ".pyc", ".pid", ".sock")


def changed_files(folders: Iterable[Path], *, since_ns: int, without: Path | None = None) -> set[Path]:
    """The files below ``folders``, but not below ``without``, that changed since a ``time.time_ns()``."""
    return {file for folder in folders for file in _walk(folder, without) if _is_changed(file, since_ns)}


def changed_open_files(pids: Iterable[int], *, since_ns: int) -> set[Path]:
    """The files that these processes have open for writing and that changed since then.

    Only Linux tells whether a file was opened for writing; elsewhere there are none.
    """
    import psutil

    found: set[Path] = set()
    for pid in pids:
        with suppress(psutil.Error, OSError):
            found |= {
                Path(opened.path)
                for opened in psutil.Process(pid).open_files()
                if getattr(opened, "mode", "r") != "r" and _is_changed(Path(opened.path), since_ns)
            }
    return found


def _is_changed(file: Path, since_ns: int) -> bool:
    # app.log.2026-01-01 is a log too
    if file.name.endswith(_IGNORED_ENDINGS) or ".log." in file.name or file.parent.name in _IGNORED_FOLDERS:
        return False
    with suppress(OSError):
        about = file.lstat()
        return stat.S_ISREG(about.st_mode) and about.st_ctime_ns >= since_ns
    return False


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


def files_with(marks: Sequence[str], files: Iterable[Path]) -> list[Path]:
    """Those of ``files``, 500 at most, that have one of ``marks`` in their name or their first 64 KiB."""
    known = [mark for mark in marks if mark]
    return [file for file in sorted(files)[:_MOST_READ] if _has_mark(file, known)]


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
