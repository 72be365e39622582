"""Findings about how connections are used: counted by kind and route, and logged once a minute."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from tenfold.types import Finding, Verdict

__all__ = ["PoolFindings"]

logger = logging.getLogger("tenfold.database")

MAX_ENTRIES = 200  # pairs of kind and route
LOG_INTERVAL_S = 60.0  # between two log lines about the same pair

# Kind → what to do about it.
REMEDIES = {
    "exhausted": "give connections back sooner: see who holds them before the pool is enlarged",
    "nearly full": "see who holds the connections before the pool is enlarged",
    "held too long": "use `with`, or close the session where the work ends",
    "idle in a transaction": "commit, or close the session, before waiting for anything but the database",
    "two connections at once": "use one session for the whole request: requests that wait for a second "
    "connection while they hold a first can exhaust any pool for good",
}


@dataclass(slots=True)
class _Entry:
    count: int = 0
    worst_s: float = 0.0
    text: str = ""
    logged: float = float("-inf")


class PoolFindings:
    """The findings of one pool, of a bounded number of kinds and routes.

    Use from any thread; of two increments at the same moment one may be lost.
    """

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self._entries: dict[tuple[str, str], _Entry] = {}

    def add(self, kind: str, route: str, seconds: float, describe: Callable[[], str]) -> bool:
        """Count one finding; call ``describe`` and log its text once a minute for each kind and route.

        Returns whether it was logged.
        """
        entry = self._entries.get((kind, route))
        if entry is None:
            if len(self._entries) >= MAX_ENTRIES:
                return False
            entry = self._entries.setdefault((kind, route), _Entry())
        entry.count += 1
        entry.worst_s = max(entry.worst_s, seconds)
        now = monotonic()
        if now - entry.logged < LOG_INTERVAL_S:
            return False
        entry.logged = now
        entry.text = describe()
        logger.warning("pool %s: %s: %s; %s", self.pool, kind, entry.text, REMEDIES[kind])
        return True

    def all(self) -> tuple[Finding, ...]:
        """All findings so far, most frequent first; the claim is the text that was logged last."""
        entries = sorted(self._entries.items(), key=lambda item: item[1].count, reverse=True)
        return tuple(
            Finding(
                kind,
                entry.text,
                Verdict.FAIL,
                {"pool": self.pool, "route": route, "count": entry.count, "worst_s": round(entry.worst_s, 3)},
                REMEDIES[kind],
            )
            for (kind, route), entry in entries
        )
