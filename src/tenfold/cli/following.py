"""The new lines of a stack's logs, each behind the name of its server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer

from tenfold.stack import Stack

_AT_ONCE = 100  # lines of one log per look: a terminal is no place for a load test
_READ = 256 * 1024
_COLOURS = {"app": "green", "nginx": "cyan", "primary": "blue", "replica": "bright_blue", "redis": "magenta"}


class Tail:
    """The lines that are added to a file from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def news(self) -> list[str]:
        """Complete lines since the last look; of very many only the last ones, and how many were left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                text = file.read(_READ)
                self._position = file.tell()
        except OSError:
            return []
        *lines, rest = (self._rest + text).split(b"\n")
        self._rest = rest[-_READ:]
        shown = [_plain(line.decode(errors="replace")) for line in lines[-_AT_ONCE:]]
        left_out = len(lines) - len(shown)
        return [f"({left_out:,} lines left out)", *shown] if left_out else shown


class Follower:
    """Follows the logs of every server, and nginx's access log."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._tails = [(server.kind, server.name, Tail(server.log)) for server in stack.servers]
        self._access = Tail(stack.access_log) if stack.access_log else None
        self._names = {server.address: server.name for server in stack.servers}
        self._width = max(len(server.name) for server in stack.servers)
        self._colour = "NO_COLOR" not in os.environ

    def print_news(self) -> None:
        """Print what is new; colours disappear where the output is no terminal."""
        for kind, name, line in self._news():
            label = f"{name:<{self._width}} │"
            colour = _COLOURS.get(kind, "yellow")
            typer.echo(f"{typer.style(label, fg=colour) if self._colour else label} {line}")

    def _news(self) -> Iterator[tuple[str, str, str]]:
        for kind, name, tail in self._tails:
            yield from ((kind, name, self._stack.redact(line)) for line in tail.news() if line)
        for line in self._access.news() if self._access else ():
            yield "nginx", "nginx", request_line(line, self._names)


def request_line(line: str, names: dict[str, str]) -> str:
    """A line of the access log for people; ``names`` says which server has which address."""
    try:
        entry = msgspec.json.decode(line, type=dict[str, Any])
        seconds = float(entry["request_time"])
        behind = ", ".join(names.get(part, part) for part in entry["upstream_addr"].split(", "))
        return (
            f"{entry['method']} {entry['path']} {entry['status']} {seconds * 1000:.0f} ms  {behind}".rstrip()
        )
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        return line


def _plain(line: str) -> str:
    """Without control characters: a log may quote what a stranger sent, and a terminal obeys."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "·" for letter in line.rstrip())
