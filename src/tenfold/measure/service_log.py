"""The last error in the logs of a stack's app instances: what a 500 answer does not say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tenfold.errors import ScenarioError
from tenfold.types import Stack

TAIL_BYTES = 64 * 1024
SHOWN = 200  # characters
_EXCEPTION = re.compile(r"^(?:[\w.]*\.)?[A-Z]\w*(?:Error|Exception|Timeout|Exit|Interrupt|Group)\b(?::.*)?$")
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+)')
_FAILED = re.compile(r"answered 5\d\d")


def last_error(stack: Stack) -> str:
    """Return the last exception of any app instance with its line and log; empty when there is none."""
    for server in stack.servers:
        if server.kind == "app" and (found := find_error(_tail(server.log), root=stack.app_folder)):
            return f"the log of {server.name} says {found} ({server.log})"
    return ""


def find_error(text: str, *, root: Path) -> str:
    """Return the last exception in ``text``, with the last line of its traceback that is below ``root``."""
    found, place = "", ""
    for line in text.splitlines():
        if line.startswith("Traceback "):
            place = ""
        elif (frame := _FRAME.match(line)) and Path(frame["file"]).is_relative_to(root):
            if "site-packages" not in frame["file"]:
                place = f" at {Path(frame['file']).relative_to(root)}:{frame['line']}"
        elif _EXCEPTION.match(line.strip()):
            found = f"{line.strip()[:SHOWN]}{place}"
    return found


@contextmanager
def failed_logins_with_log(stack: Stack) -> Iterator[None]:
    """Add the service's last error to a login error whose cause is the service."""
    try:
        yield
    except ScenarioError as error:
        if not _FAILED.search(str(error)) or not (found := last_error(stack)):
            raise
        raise ScenarioError(f"{error}; {found}") from error


def names_failure(messages: Iterable[str]) -> bool:
    """Return whether one of these errors is a failure of the service itself (5xx)."""
    return any(_FAILED.search(one) for one in messages)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
