"""Call sites in the user's code: the nearest frame outside every library and below the app's folder."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

DEPTH = 200  # frames searched at most; a deep recursion is not worth more
FILES = 20_000  # files and lines cached; code compiled by exec() can have any number of them


class CallSite(NamedTuple):
    """A line of the user's code: ``shop/orders.py:48`` relative to the root, and its function."""

    where: str
    function: str


NOWHERE = CallSite("", "")


class CallSites:
    """Find call sites by walking frames upwards; caches for each file whether it is the user's.

    A walk reads ``co_filename`` of some 20 frames (SQLAlchemy's own) at one dictionary look-up each, about
    2 µs. Files below the root in site-packages or the standard library are libraries.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        self._libraries = tuple(f"{folder.resolve()}/" for folder in [*folders, Path(__file__).parents[1]])
        self._files: dict[str, str] = {}  # file name → path relative to the root, or "" for a library
        self._lines: dict[tuple[str, int], CallSite] = {}

    def find(self, frame: FrameType | None) -> CallSite:
        """Return the nearest user line at or above ``frame``; ``NOWHERE`` when there is none.

        Under SQLAlchemy's async engine the frames end at the greenlet that runs the statement; the user's
        are those of the greenlet that started it, which is suspended meanwhile.
        """
        found = self._walk(frame)
        return self._walk(starting_frame()) if found is NOWHERE else found

    def stack(self, frame: FrameType | None, *, most: int) -> list[CallSite]:
        """Return at most ``most`` user lines at and above ``frame``, innermost first."""
        found: list[CallSite] = []
        for _ in range(DEPTH):
            if frame is None or len(found) >= most:
                break
            path = self._files.get(frame.f_code.co_filename)
            if path is None:
                path = self._path(frame.f_code.co_filename)
            if path:
                found.append(self._remember((path, frame.f_lineno), frame))
            frame = frame.f_back
        return found

    def definition(self, function: object) -> CallSite:
        """Return where a function is defined; ``NOWHERE`` for a builtin, a class or a library's function."""
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        code = getattr(function, "__code__", None)
        path = self._path(code.co_filename) if code is not None else ""
        return (
            CallSite(f"{path}:{code.co_firstlineno}", _name(code)) if code is not None and path else NOWHERE
        )

    def _walk(self, frame: FrameType | None) -> CallSite:
        files = self._files
        for _ in range(DEPTH):
            if frame is None:
                break
            code = frame.f_code
            path = files.get(code.co_filename)
            if path is None:
                path = self._path(code.co_filename)
            if path:
                line = (path, frame.f_lineno)
                return self._lines.get(line) or self._remember(line, frame)
            frame = frame.f_back
        return NOWHERE

    def _remember(self, line: tuple[str, int], frame: FrameType) -> CallSite:
        if len(self._lines) >= FILES:
            self._lines.clear()
        site = CallSite(f"{line[0]}:{_source_line(frame)}", _name(frame.f_code))
        return self._lines.setdefault(line, site)

    def path(self, filename: str) -> str:
        """Return a file's path relative to the root; empty for a library's file."""
        path = self._files.get(filename)
        return self._path(filename) if path is None else path

    def _path(self, filename: str) -> str:
        if len(self._files) >= FILES:
            self._files.clear()
        path = self._files[filename] = self._relative(filename)
        return path

    def _relative(self, filename: str) -> str:
        if filename.startswith("<"):
            return ""
        try:
            path = Path(filename).resolve()
        except (OSError, ValueError, RuntimeError):  # the name is not a path; the app must not notice
            return ""
        name = str(path)
        library = name.startswith(self._libraries) or "/site-packages/" in name or "/dist-packages/" in name
        return "" if library or not path.is_relative_to(self._root) else str(path.relative_to(self._root))


def _source_line(frame: FrameType) -> int:
    """Return the line in the file; a frame of a Jinja template counts those of its compiled code."""
    template = frame.f_globals.get("__jinja_template__")
    if template is not None:
        try:
            return int(template.get_corresponding_lineno(frame.f_lineno))
        except Exception:  # it has the name and is no template; the app must not notice
            return frame.f_lineno
    return frame.f_lineno


def _name(code: CodeType) -> str:
    """Return the function's name; a comprehension or a lambda has that of the function around it.

    Python 3.10 knows the code's own name only.
    """
    names = getattr(code, "co_qualname", code.co_name).split(".<locals>.")
    return next((name for name in reversed(names) if not name.startswith("<")), code.co_name)


def starting_frame() -> FrameType | None:
    """Return the frame that waits for the current greenlet; None outside of one."""
    greenlet: Any = sys.modules.get("greenlet")
    parent = greenlet.getcurrent().parent if greenlet is not None else None
    return getattr(parent, "gr_frame", None)
