"""Bottlenecks as values: what limits a service, with evidence, location and remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Severity = Literal["critical", "high", "medium", "low"]
Proof = Literal["proven", "suspected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """One limit of the service, with its evidence and remedy."""

    cause: str = ""  # its kind for programs: "n_plus_one", "blocking_call" …
    # "CPU", "Memory", "Database", "Disk I/O", "Network", "Connection Pool", "Event loop", "Threads",
    # "Machine", "Requests", "Tasks", "Lock", "Service", "Delay"
    kind: str
    title: str
    severity: Severity
    remedy: str
    evidence: tuple[str, ...] = ()
    where: str | None = None  # "shop/orders.py:48"
    share: float | None = None  # of the limit's use, 0..1; None when it is not known
    proof: Proof = "suspected"

    @property
    def type(self) -> str:
        """``kind``, under the name that ``analyze_performance_metrics`` promises."""
        return self.kind

    @property
    def solution(self) -> str:
        """``remedy``, under the name that ``analyze_performance_metrics`` promises."""
        return self.remedy

    def __str__(self) -> str:
        lines = [f"{self.kind} · {self.title}  [{self.severity}, {self.proof}]"]
        lines += [f"   {line}" for line in (self.where, *self.evidence) if line]
        return "\n".join([*lines, f"   → {self.remedy}"])


def found(
    cause: str,
    kind: str,
    title: str,
    *,
    share: float | None,
    where: str | None,
    remedy: str,
    evidence: tuple[str, ...] = (),
    proven: bool = False,
) -> Bottleneck:
    """Return a cause, its severity by its share of the limit's use."""
    return Bottleneck(
        cause=cause,
        kind=kind,
        title=title,
        severity=severity(share),
        share=None if share is None else min(share, 1.0),
        where=where,
        evidence=evidence,
        remedy=remedy,
        proof="proven" if proven else "suspected",
    )


def with_share(one: Bottleneck, share: float) -> Bottleneck:
    """Return a cause with another share of the limit's use."""
    return replace(one, share=min(share, 1.0), severity=severity(share))


def severity(share: float | None) -> Severity:
    """Return the severity of a share of the limit's use; critical where the share is not known."""
    if share is None or share >= 0.5:
        return "critical"
    return "high" if share >= 0.2 else "medium"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What stops the service.

    ``resource``: quota, others, machine, python, loop, pool, threads, row locks, commit, database, lock,
    external, redis, proxy, delay, none. ``held_by``: the state of those who use it up, as in the samples.
    """

    resource: str
    title: str
    held_by: str = ""
    chain: tuple[str, ...] = ()  # from the queue that was seen to the limit
    evidence: tuple[str, ...] = ()
    remedy: str = ""  # when no cause stands out

    def __bool__(self) -> bool:
        return self.resource != "none"


@dataclass(frozen=True, slots=True)
class Analysis:
    """Bottlenecks, the worst first, and what was not measured. Iterates over the bottlenecks."""

    bottlenecks: tuple[Bottleneck, ...] = ()
    not_measured: tuple[str, ...] = ()  # not to be taken for healthy
    limit: Limit | None = None  # what they use up; None where only metrics were compared
    present: tuple[str, ...] = ()  # what was proven and uses little of it, a line each

    def __iter__(self) -> Iterator[Bottleneck]:
        return iter(self.bottlenecks)

    def __len__(self) -> int:
        return len(self.bottlenecks)

    def __getitem__(self, index: int) -> Bottleneck:
        return self.bottlenecks[index]

    def __bool__(self) -> bool:
        return bool(self.bottlenecks)

    def __str__(self) -> str:
        lines = [f"What stops it: {self.limit.title}"] if self.limit is not None else []
        if self.bottlenecks:
            lines += [f"{rank}  {one}" for rank, one in enumerate(self.bottlenecks, 1)]
        elif not lines:
            lines.append("No bottleneck found in what was measured.")
        if self.not_measured:
            lines.append(f"Not measured: {'; '.join(self.not_measured)}")
        return "\n".join(lines)
