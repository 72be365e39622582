"""The tail of a server's log, as error messages quote it."""

from __future__ import annotations

import signal
from pathlib import Path

LINES = 12
_BYTES = 8192

MESSAGE_PREFIX = "tenfold: "
"""Begins a log line that tenfold's own code in the process wrote; the error shows that line alone."""


def failure_message(what: str, log: Path) -> str:
    """Return ``what`` and the last lines of ``log``, or only tenfold's own message if it has one."""
    if message := tenfold_message(log):
        return message
    quoted = "\n".join(f"  {line}" for line in last_lines(log))
    return f"{what}; its last lines:\n{quoted}" if quoted else f"{what}; it wrote nothing"


def tenfold_message(log: Path) -> str | None:
    """Return the last message of tenfold's own code in the process, if any."""
    messages = [line for line in last_lines(log, lines=1000) if line.startswith(MESSAGE_PREFIX)]
    return messages[-1].removeprefix(MESSAGE_PREFIX) if messages else None


def last_lines(log: Path, *, lines: int = LINES) -> list[str]:
    """Return the last non-empty lines of ``log``, at most ``lines``; reads no more than 8 KB of it."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _BYTES))
            text = stream.read(_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def first_lines(log: Path) -> str:
    """Return the first 8 KB of ``log``."""
    try:
        with log.open("rb") as stream:
            return stream.read(_BYTES).decode(errors="replace")
    except OSError:
        return ""


def exit_text(status: int | None) -> str:
    """Return an exit status in words."""
    if status is None:
        return "still running"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
