"""New lines of a stack's logs, each behind the name of its server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import typer

from tenfold.stack import Stack
from tenfold.verify.kit.access_log import parse_entry

_MAX_LINES = 100  # of one log at once: a terminal cannot show the log of a load test
_READ_BYTES = 256 * 1024
_COLOURS = {"app": "green", "nginx": "cyan", "primary": "blue", "replica": "bright_blue", "redis": "magenta"}


class LogTail:
    """The lines that are appended to a file from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def read_new(self) -> list[str]:
        """Return the complete lines since the last call; of many, the last ones and the number left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                text = file.read(_READ_BYTES)
                self._position = file.tell()
        except OSError:
            return []
        *lines, rest = (self._rest + text).split(b"\n")
        self._rest = rest[-_READ_BYTES:]
        shown = [_printable(line.decode(errors="replace")) for line in lines[-_MAX_LINES:]]
        left_out = len(lines) - len(shown)
        return [f"({left_out:,} lines left out)", *shown] if left_out else shown


class LogFollower:
    """Print the logs of every server, and nginx's access log, as they grow."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._tails: dict[str, tuple[str, LogTail]] = {}
        self._names: dict[str, str] = {}
        self._find_servers()
        self._access = LogTail(stack.access_log) if stack.access_log else None
        self._width = max(len(server.name) for server in stack.servers)
        self._colour = "NO_COLOR" not in os.environ

    def print_new(self) -> None:
        """Print the new lines; without colours where the output is no terminal."""
        for kind, name, line in self._new_lines():
            label = f"{name:<{self._width}} │"
            colour = _COLOURS.get(kind, "yellow")
            typer.echo(f"{typer.style(label, fg=colour) if self._colour else label} {line}")

    def _find_servers(self) -> None:
        """Follow instances that were added, too; the log of one that ended has its last lines to come."""
        for server in self._stack.servers:
            if server.name not in self._tails:
                self._tails[server.name] = server.kind, LogTail(server.log)
                self._names[server.address] = server.name

    def _new_lines(self) -> Iterator[tuple[str, str, str]]:
        self._find_servers()
        for name, (kind, tail) in self._tails.items():
            yield from ((kind, name, self._stack.redact(line)) for line in tail.read_new() if line)
        for line in self._access.read_new() if self._access else ():
            yield "nginx", "nginx", format_request(line, self._names)


def format_request(line: str, names: dict[str, str]) -> str:
    """Format a line of the access log for people; ``names`` maps addresses to names of servers."""
    if (entry := parse_entry(line)) is None:
        return line
    upstreams = ", ".join(names.get(address, address) for address in entry.upstreams)
    milliseconds = f"{1000 * entry.request_s:.0f} ms"
    return f"{entry.method} {entry.path} {entry.status} {milliseconds}  {upstreams}".rstrip()


def _printable(line: str) -> str:
    """Replace control characters: a log may contain a client's bytes, and a terminal would obey them."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "·" for letter in line.rstrip())
