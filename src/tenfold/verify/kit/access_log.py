"""nginx's JSON access log, read while it grows: the instances that each request was sent to."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_SEPARATOR = re.compile(r",\s+|\s+:\s+")  # ", " between tries, " : " after an internal redirect


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One request as nginx logged it.

    Attributes:
        upstreams: addresses that it was sent to, in their order.
        sent_bytes: bytes of the request that each of them got; empty in a log without that field.
        seconds: duration of the last try; 0 where the log has none.
        request_s: duration of the request at nginx, all tries included.
        status: of the response to the client.
        cache: what nginx's cache did: HIT, MISS, …; empty without one.
    """

    method: str
    path: str
    upstreams: tuple[str, ...]
    sent_bytes: tuple[int, ...] = ()
    seconds: float = 0.0
    request_s: float = 0.0
    status: int = 0
    cache: str = ""

    @property
    def reached_several(self) -> bool:
        """True if more than one instance got some of it: each of them may have carried it out."""
        return sum(count > 0 for count in self.sent_bytes) > 1


def parse_entry(line: str) -> LogEntry | None:
    """Read a line of the log; None for any other text."""
    try:
        found = json.loads(line)
        return LogEntry(
            str(found["method"]),
            str(found["path"]),
            _parts(found["upstream_addr"]),
            tuple(int(count) for count in _parts(found.get("upstream_bytes_sent", ""))),
            _seconds(_parts(found.get("upstream_response_time", ""))),
            float(found.get("request_time", 0.0)),
            int(found.get("status", 0)),
            str(found.get("upstream_cache_status", "")),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _parts(text: object) -> tuple[str, ...]:
    return tuple(part for part in _SEPARATOR.split(str(text)) if part and part != "-")


def _seconds(times: tuple[str, ...]) -> float:
    seconds = float(times[-1]) if times else 0.0
    return seconds if math.isfinite(seconds) else 0.0


class AccessLog:
    """The entries that are appended from now on. nginx writes a line a moment after the answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def read_new(self, *, quiet_s: float = 0.0, within_s: float = 5.0) -> list[LogEntry]:
        """The entries since the last call; with ``quiet_s``, once none has come for that long."""
        text = self._read_appended()
        deadline = time.monotonic() + within_s
        while quiet_s and time.monotonic() < deadline:
            time.sleep(quiet_s)
            more = self._read_appended()
            if not more:
                break
            text += more
        return [entry for line in text.splitlines() if (entry := parse_entry(line))]

    def _read_appended(self) -> str:
        if not self._path.exists():
            return ""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]  # the last line may be half written
        self._offset += len(whole)
        return whole.decode("utf-8", "replace")

    def wait_until_used(self, address: str, send: Callable[[], object], *, within_s: float) -> bool:
        """Call ``send``, which sends a request, until ``address`` has answered one; False after ``within_s``.

        nginx leaves an instance alone for a while after failures, even when it is back already.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            send()
            if any(entry.upstreams[-1:] == (address,) for entry in self.read_new(quiet_s=0.02)):
                return True
        return False
