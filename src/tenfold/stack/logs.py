"""The last words of a server: what an error message quotes of its log."""

from __future__ import annotations

import signal
from pathlib import Path

LINES = 12
_BYTES = 8192

SENTENCE = "tenfold: "
"""A log line that begins so was written by tenfold's own code in the process and says all there is to say."""


def last_lines(log: Path, *, lines: int = LINES) -> list[str]:
    """The last non-empty lines of ``log``, at most ``lines``; reads no more than 8 KB of it."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _BYTES))
            text = stream.read(_BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def sentence_of(log: Path) -> str | None:
    """What tenfold's own code in the process had to say about its end, if anything."""
    said = [line for line in last_lines(log, lines=1000) if line.startswith(SENTENCE)]
    return said[-1].removeprefix(SENTENCE) if said else None


def failure(what: str, log: Path) -> str:
    """One sentence about a failed server or command and its last lines; its own sentence if it wrote one."""
    if sentence := sentence_of(log):
        return sentence
    quoted = "\n".join(f"  {line}" for line in last_lines(log))
    return f"{what}; its last lines:\n{quoted}" if quoted else f"{what}; it wrote nothing"


def ending(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "still running"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
