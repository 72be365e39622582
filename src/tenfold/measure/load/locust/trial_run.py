"""A trial under way: its ledger, its tallies, its clock, and the agents that are busy with it."""

from __future__ import annotations

import time
from array import array
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING

from tenfold.measure.load import histogram
from tenfold.measure.load.answers import Tallies
from tenfold.measure.load.arrivals import Ledger
from tenfold.measure.load.generator_protocol import TrialDone
from tenfold.measure.trial import GeneratorHealth

if TYPE_CHECKING:
    from tenfold.measure.load.locust.user_driver import Agent

Work = tuple["Book", int, bool]  # whose arrival, which one, and whether a user was idle when it was due

LEAD_S = 0.02  # between the drawing of breath and the first possible due time
_STAT = Path("/proc/stat")


class Book:
    """One trial's clock starts with :meth:`open`."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.tallies = Tallies()
        self.busy: set[Agent] = set()
        self.without_request = 0
        self._zero = perf_counter()
        self._cpu_s = self._wall_s = self._steal = 0.0
        self._ticks = (0, 0)

    def now(self) -> float:
        """Seconds on the trial's clock; negative before the load begins."""
        return perf_counter() - self._zero

    def open(self) -> None:
        """The load begins in ``LEAD_S``."""
        self._zero = perf_counter() + LEAD_S
        self._cpu_s, self._wall_s, self._ticks = process_time(), time.monotonic(), _cpu_ticks()

    def drop(self, arrival: int, now: float) -> None:
        """Nobody was free to send it: it took at least as long as it waited."""
        self.ledger.drop(arrival, now)
        self.tallies.unsent_ms.append((now - self.ledger.due[arrival]) * 1000)

    def unload(self) -> None:
        """The load is over: what the generator itself used is counted up to here."""
        self._cpu_s = process_time() - self._cpu_s
        self._wall_s = time.monotonic() - self._wall_s
        total, stolen = _cpu_ticks()
        passed = total - self._ticks[0]
        self._steal = (stolen - self._ticks[1]) / passed if passed > 0 else 0.0

    def health(self) -> GeneratorHealth:
        """How the generator itself fared."""
        offered = len(self.ledger.due)
        return GeneratorHealth(
            cpu_share=self._cpu_s / self._wall_s if self._wall_s else 0.0,
            late_share=self.ledger.late.total() / offered if offered else 0.0,
            lag_p99_ms=_p99(self.ledger.lags_s) * 1000,
            steal_share=self._steal,
        )

    def close(self, *, users: int, logins: int) -> TrialDone:
        """Take what is unanswered as it is, and sum up. Agents still busy belong to no trial from now on."""
        settled = self.ledger.last_over_s if not self.ledger.under_way else self.now()
        unanswered = [agent for agent in self.busy if agent.asking]
        for agent in list(self.busy):
            agent.abandon()
        self.busy.clear()
        notes = {
            "arrivals without a request": self.without_request,
            "logins": logins,
            "requests unanswered at the end": len(unanswered),
        }
        return TrialDone(
            seconds=self.ledger.horizon_s,
            settled_s=max(0.0, settled - self.ledger.horizon_s),
            generator=self.health(),
            endpoints=self.tallies.endpoints(),
            corrected=histogram.encode(self.tallies.corrected_ms()),
            raw=histogram.encode(self.tallies.raw_ms()),
            users=users,
            requests=self.tallies.requests,
            errors=dict(self.tallies.errors.most_common()),
            notes={what: count for what, count in notes.items() if count},
        )


def _p99(values: array[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0


def _cpu_ticks() -> tuple[int, int]:
    """Ticks of all CPUs together, and those taken by other machines on the same host; zeros without Linux."""
    try:
        with _STAT.open() as stat:
            ticks = [int(field) for field in stat.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return sum(ticks), ticks[7] if len(ticks) > 7 else 0
