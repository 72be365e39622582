"""A trial: one load for one while, as it was asked for and as it went. Values only, no logic beyond sums.

Times are seconds on the trial's own clock (0 = its first due time could fall here), latencies are
milliseconds where a name says ``_ms``. An *arrival* is one execution of a user's task, due at a moment that
was drawn before the trial began; a task may send several requests. Its first request counts from the due
time, the others from the moment they were sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Purpose = Literal["warm-up", "ramp", "search", "confirm", "overload", "recovery", "closed"]


@dataclass(frozen=True, slots=True)
class Block:
    """All arrivals whose due times lie in ``[start_s, start_s + seconds)``, once each has its verdict.

    An arrival still under way ``slow_ms`` after its due time is already bad, so a block is final
    ``slow_ms`` after its end, however long its slowest answer takes.
    ``offered == good + slow + failed + refused + unsent`` always holds.
    """

    start_s: float
    seconds: float
    offered: int
    good: int
    slow: int = 0
    failed: int = 0
    refused: int = 0
    unsent: int = 0
    late: int = (
        0  # handed over later than 5 % of the objective although a user was free: the generator's fault
    )
    in_flight: int = 0  # arrivals under way when the block ended

    @property
    def bad(self) -> int:
        """Arrivals that miss the objective, whatever the reason."""
        return self.offered - self.good


class StopRule(Protocol):
    """Says after each block whether a trial has seen enough. Pure: fed with blocks, in order, once each."""

    def should_stop(self, blocks: Sequence[Block]) -> bool:
        """Whether the trial may end now; ``blocks`` are all blocks so far."""


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """What a trial is asked to do."""

    rate: float  # arrivals per second
    duration_s: float  # at most; a stop rule may end it earlier
    purpose: Purpose
    seed: int
    rule: StopRule | None = None
    # After a trial the generator waits until nothing is in flight, at most this long.
    settle_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one endpoint answered in a trial. Histograms are HdrHistogram V2, base64, in microseconds."""

    name: str  # as Locust names it: "GET /api/products/{id}"
    requests: int
    failed: int  # exceptions, 4xx and 5xx other than refusals, and what the locustfile called a failure
    refused: int  # 429 and 503
    statuses: Mapping[str, int]  # "200": 51, "error": 2 (no answer at all)
    corrected: str  # latency from the due time
    raw: str  # latency from the sending of the request
    bytes_p50: int = 0  # of successful answers: answers that change under load show here


@dataclass(frozen=True, slots=True)
class GeneratorHealth:
    """Whether the load came from the generator as it was meant to."""

    cpu_share: float  # of one core, 0..1, over the trial
    late_share: float  # share of arrivals handed over late although a user was free
    lag_p99_ms: float  # how late the scheduler woke, 99th percentile
    steal_share: float = 0.0  # CPU time taken by other machines on the same host, 0..1

    def is_limited(self, *, late: float = 0.02, cpu: float = 0.95) -> bool:
        """Whether the trial says more about the generator than about the service."""
        return self.late_share > late or self.cpu_share > cpu


@dataclass(frozen=True, slots=True)
class Trial:
    """What happened."""

    request: TrialRequest
    seconds: float  # from the first possible due time to the end of the last block
    settled_s: float  # from the end of the load until nothing was in flight
    blocks: tuple[Block, ...]
    generator: GeneratorHealth
    endpoints: tuple[Endpoint, ...] = ()
    corrected: str = ""  # all endpoints together, and what was never sent with the time that it waited
    raw: str = ""
    users: int = 0  # logged in at the end
    requests: int = 0  # requests that belong to arrivals
    errors: Mapping[str, int] = field(default_factory=dict)  # the commonest messages, bounded in number
    # What else happened, how often: "arrivals without a request", "logins", "requests unanswered at the end".
    notes: Mapping[str, int] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def offered(self) -> int:
        """Arrivals that were due."""
        return sum(block.offered for block in self.blocks)

    @property
    def good(self) -> int:
        """Arrivals that met the objective."""
        return sum(block.good for block in self.blocks)

    @property
    def bad(self) -> int:
        """Arrivals that missed it."""
        return self.offered - self.good

    @property
    def bad_share(self) -> float:
        """Bad arrivals among those offered; 0 when none was due."""
        return self.bad / self.offered if self.offered else 0.0
