"""Sums of the workers' samples and clocks, in bounded memory; and the texts that their numbers stand for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, fields

from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.evidence import ClockStats, MemoryStats, SampleStats

KEYS = 20_000
STACKS = 5_000
STACKS_SHOWN = 200
SAMPLES_SHOWN = 2_000

OTHER_ROUTE = ("(other)", "")
OTHER_STATEMENT = ("(other)", "", "")


@dataclass
class TextTable:
    """Routes and statements of one connection, by the numbers that stand for them in its batches."""

    routes: dict[int, tuple[str, str]] = field(default_factory=lambda: {probe_protocol.OTHER: OTHER_ROUTE})
    statements: dict[int, tuple[str, str, str]] = field(
        default_factory=lambda: {probe_protocol.OTHER: OTHER_STATEMENT}
    )

    def add(self, batch: probe_protocol.Batch) -> None:
        """Add the batch's new texts."""
        for route in batch.routes:
            self.routes[route.number] = (f"{route.method} {route.path}", route.endpoint)
        for text in batch.statements:
            self.statements[text.number] = (text.fingerprint, text.site, text.database)

    def route(self, number: int) -> tuple[str, str]:
        """Return a route's label and endpoint."""
        return self.routes.get(number, OTHER_ROUTE)

    def statement(self, number: int) -> tuple[str, str, str]:
        """Return a statement's fingerprint, call site and kind of database."""
        return self.statements.get(number, OTHER_STATEMENT)


@dataclass
class SampleTotals:
    """Samples, stacks, clocks and pauses of all workers."""

    samples: dict[tuple[str, str, str, str, str, bool], list[float]] = field(default_factory=dict)
    stacks: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    clocks: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)  # by worker
    pauses: int = 0
    pause_s: float = 0.0
    longest_s: float = 0.0

    def add(self, worker: int, batch: probe_protocol.Batch, texts: TextTable) -> None:
        """Add one worker's batch, whose texts are known."""
        for one in batch.samples:
            route = texts.route(one.route)[0] if one.route != probe_protocol.OTHER else ""
            key = (route, one.state, one.place, one.line, one.detail, one.holds)
            self._add_sample(key, one.seconds, one.cpu_s)
        for stack, seconds in batch.stacks.items():
            number, _, rest = stack.partition(";")
            route = texts.route(int(number))[0] if int(number) != probe_protocol.OTHER else "(no request)"
            self._add_stack(f"{route};{rest}", seconds)
        for name, clock in (("loop", batch.loop), ("threads", batch.threads)):
            if clock is not None:
                total = self.clocks.setdefault((name, worker), defaultdict(float))
                for entry in fields(clock):
                    total[entry.name] += getattr(clock, entry.name)
        self.pauses += batch.gc_pauses
        self.pause_s += batch.gc_pause_s
        self.longest_s = max(self.longest_s, batch.gc_longest_s)

    def merge(self, other: SampleTotals) -> None:
        """Add those of another trial."""
        for key, (seconds, cpu_s) in other.samples.items():
            self._add_sample(key, seconds, cpu_s)
        for stack, seconds in other.stacks.items():
            self._add_stack(stack, seconds)
        for of_worker, clock in other.clocks.items():
            total = self.clocks.setdefault(of_worker, defaultdict(float))
            for name, seconds in clock.items():
                total[name] += seconds
        self.pauses += other.pauses
        self.pause_s += other.pause_s
        self.longest_s = max(self.longest_s, other.longest_s)

    def stats(self) -> tuple[SampleStats, ...]:
        """Return the samples, the most frequent first."""
        most = sorted(self.samples.items(), key=lambda item: -item[1][0])[:SAMPLES_SHOWN]
        return tuple(
            SampleStats(
                route=route, state=state, place=place, line=line, detail=detail, holds=holds,
                seconds=seconds, cpu_s=cpu_s,
            )
            for (route, state, place, line, detail, holds), (seconds, cpu_s) in most
        )  # fmt: skip

    def most_frequent_stacks(self) -> tuple[tuple[str, float], ...]:
        """Return the stacks in which most time was seen."""
        return tuple(sorted(self.stacks.items(), key=lambda item: -item[1])[:STACKS_SHOWN])

    def clock(self, name: str) -> ClockStats | None:
        """Return the time of ``loop`` or of ``threads`` in the busiest worker; None where it was not seen."""
        clocks = [
            ClockStats(**{one: clock[one] for one in ClockStats.__struct_fields__})
            for (kind, _), clock in self.clocks.items()
            if kind == name and clock["wall_s"]
        ]
        return max(clocks, key=lambda one: one.busy_share, default=None)

    def memory(self) -> MemoryStats | None:
        """Return the collectors' pauses."""
        return MemoryStats(pauses=self.pauses, pause_s=self.pause_s, longest_s=self.longest_s)

    def _add_sample(self, key: tuple[str, str, str, str, str, bool], seconds: float, cpu_s: float) -> None:
        found = self.samples.get(key)
        if found is None:
            if len(self.samples) >= KEYS:
                return
            found = self.samples[key] = [0.0, 0.0]
        found[0] += seconds
        found[1] += cpu_s

    def _add_stack(self, stack: str, seconds: float) -> None:
        if stack in self.stacks or len(self.stacks) < STACKS:
            self.stacks[stack] += seconds
