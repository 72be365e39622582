"""nginx's JSON access log, read while it grows: which instance answered a request, after how many tries."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_SEPARATOR = re.compile(r",\s+|\s+:\s+")  # ", " between tries, " : " after an internal redirect


@dataclass(frozen=True, slots=True)
class Row:
    """One request as nginx saw it; ``upstreams`` are the addresses that it was sent to, in their order."""

    id: str
    method: str
    path: str
    status: int
    upstreams: tuple[str, ...]
    statuses: tuple[str, ...]
    sent: tuple[int, ...]  # bytes of the request that each of them got; empty in a log without that field

    @property
    def repeated(self) -> bool:
        """Whether more than one instance got something of it: each of them may have carried it out."""
        return sum(count > 0 for count in self.sent) > 1


def parsed(line: str) -> Row | None:
    """A line of the log; None for one that is none."""
    try:
        found = json.loads(line)
        return Row(
            str(found["id"]),
            str(found["method"]),
            str(found["path"]),
            int(found["status"]),
            _several(found["upstream_addr"]),
            _several(found["upstream_status"]),
            tuple(int(count) for count in _several(found.get("upstream_bytes_sent", ""))),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _several(text: object) -> tuple[str, ...]:
    return tuple(part for part in _SEPARATOR.split(str(text)) if part and part != "-")


class AccessLog:
    """What is appended from now on. nginx writes a line a moment after the answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def rows(self, *, quiet_s: float = 0.0, within_s: float = 5.0) -> list[Row]:
        """The rows since the last call; with ``quiet_s``, once nothing more has come for so long."""
        text = self._appended()
        deadline = time.monotonic() + within_s
        while quiet_s and time.monotonic() < deadline:
            time.sleep(quiet_s)
            more = self._appended()
            if not more:
                break
            text += more
        return [row for line in text.splitlines() if (row := parsed(line))]

    def _appended(self) -> str:
        if not self._path.exists():
            return ""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]  # the last line may be half written
        self._offset += len(whole)
        return whole.decode("utf-8", "replace")

    def answered_by(self, address: str, ask: Callable[[], object], *, within_s: float) -> bool:
        """Call ``ask``, which sends a request, until ``address`` has answered one; False when time is over.

        nginx leaves an instance that failed alone for a while, also when it is back already.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            ask()
            if any(row.upstreams[-1:] == (address,) for row in self.rows(quiet_s=0.02)):
                return True
        return False
