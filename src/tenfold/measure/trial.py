"""Values of a trial, one load for a limited time: its request and its results. No logic beyond sums.

Times are seconds on the trial's own clock (0 is the earliest possible due time), latencies are milliseconds
where a name ends in ``_ms``. An *arrival* is one execution of a user's task, due at a time that was drawn
before the trial began; a task may send several requests. Its first request counts from the due time, the
others from their sending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

TASK_LIMIT_S = 20.0  # a task that goes on for longer does not end
SHORT_TASK_S = 0.5  # a longer task needs load before and after the arrivals that are counted

# "alone" and "wait" send one arrival at a time, each when the one before is over, ``rate`` a second at most;
# "wait" begins when all requests of earlier trials are answered.
Purpose = Literal["warm-up", "alone", "ramp", "search", "confirm", "wait", "overload", "recovery", "closed"]


@dataclass(frozen=True, slots=True)
class Block:
    """All arrivals whose due times lie in ``[start_s, start_s + seconds)``, once each has its result.

    An arrival still in flight ``slow_ms`` after its due time is already bad, so a block is final
    ``slow_ms`` after its end, however long its slowest answer takes.
    ``offered == good + slow + failed + refused + unsent`` always holds. An arrival without a request that
    Locust knows has no result: it is counted as ``silent`` and in none of the others.
    """

    start_s: float
    seconds: float
    offered: int
    good: int
    slow: int = 0
    failed: int = 0
    refused: int = 0
    unsent: int = 0
    late: int = 0  # started later than 5 % of the objective although a user was free: the generator's fault
    # When the block ended: requests under way, and due arrivals that no user had started. Not tasks.
    in_flight: int = 0
    silent: int = 0

    @property
    def bad(self) -> int:
        """Arrivals that miss the objective, for any reason."""
        return self.offered - self.good


class StopRule(Protocol):
    """A rule that decides after each block whether the trial ends. Pure."""

    def should_stop(self, blocks: Sequence[Block]) -> bool:
        """Return whether the trial may end now; ``blocks`` are all blocks so far."""


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """A request for a trial."""

    rate: float  # arrivals per second
    duration_s: float  # at most; a stop rule may end it earlier
    purpose: Purpose
    seed: int
    rule: StopRule | None = None
    login_s: float = 5.0  # longest wait at the beginning for the users that the rate needs
    settle_s: float = 3.0  # longest wait until nothing is in flight: at the end, of a "wait" at the beginning


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Answers of one endpoint in a trial. Histograms are HdrHistogram V2, base64, in microseconds."""

    name: str  # as Locust names it: "GET /api/products/{id}"
    requests: int
    failed: int  # exceptions, 4xx and 5xx other than refusals, and failures marked by the locustfile
    refused: int  # 429 and 503
    statuses: Mapping[str, int]  # "200": 51, "error": 2 (no answer at all)
    corrected: str  # latency from the due time; refusals have none
    raw: str  # latency from the sending of the request; refusals have none
    bytes_p50: int = 0  # of successful answers: shows answers that change under load


@dataclass(frozen=True, slots=True)
class Stalls:
    """How long the generator's thread stood still in a trial, by what it did meanwhile; seconds."""

    on_cpu_s: float  # it computed: too many requests, or a locustfile that works hard
    queued_s: float  # it waited for a CPU that others used
    blocked_s: float  # it stood in a call that blocks every user
    blocked_at: str = ""  # the line of the locustfile where, as far as it was seen

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.on_cpu_s + self.queued_s + self.blocked_s


BUSY_CORE = 0.7  # of its core: from here on lateness may be the generator's own work


@dataclass(frozen=True, slots=True)
class GeneratorHealth:
    """CPU use and delays of the generator itself in a trial."""

    cpu_share: float  # of one core, 0..1, over the trial
    late_share: float  # share of arrivals started late although a user was free
    lag_p99_ms: float  # delay of the start despite a free user, 99th percentile
    steal_share: float = 0.0  # CPU time taken by other machines on the same host, 0..1
    stalls: Stalls | None = None  # None where the system does not tell

    def is_limited(self, *, late: float = 0.02, cpu: float = 0.95) -> bool:
        """Return whether the generator, not the service, limited the trial.

        Arrivals that left late because others used the CPUs are the service's limit on this machine: they are
        judged like all others, by their latency from the due time.
        """
        if self.cpu_share > cpu:
            return True
        return self.late_share > late and self.fault != "none"

    @property
    def fault(self) -> Literal["cpu", "blocked", "unknown", "none"]:
        """What made arrivals late, if it was the generator."""
        if self.stalls is None:
            return "unknown"
        most = self.stalls.seconds / 2
        if self.cpu_share >= BUSY_CORE and self.stalls.on_cpu_s > most:
            return "cpu"
        return "blocked" if self.stalls.blocked_s > most else "none"


@dataclass(frozen=True, slots=True)
class Trial:
    """The results of a trial."""

    request: TrialRequest
    seconds: float  # from the first possible due time to the end of the last block
    settled_s: float  # from the end of the load until nothing was in flight
    blocks: tuple[Block, ...]
    generator: GeneratorHealth
    endpoints: tuple[Endpoint, ...] = ()
    corrected: str = ""  # all endpoints together, and unsent arrivals with the time that they waited
    raw: str = ""
    users: int = 0  # logged in at the end
    requests: int = 0  # requests that belong to arrivals
    errors: Mapping[str, int] = field(default_factory=dict)  # the most frequent messages, bounded in number
    # Counts of other events: "arrivals without a request", "logins", "requests unanswered at the end".
    notes: Mapping[str, int] = field(default_factory=dict)
    silent: Mapping[str, int] = field(default_factory=dict)  # arrivals without a request, by task
    unended: Mapping[str, int] = field(default_factory=dict)  # arrivals whose task does not end, by task
    task_s: float = 0.0  # what a task takes beyond its first answer, 95th percentile of all trials so far
    interrupted: bool = False

    @property
    def extra_s(self) -> float:
        """Seconds that the next trial takes beyond its own length: load before and after what is counted."""
        return 2 * self.task_s if self.task_s > SHORT_TASK_S else 0.0

    @property
    def offered(self) -> int:
        """Arrivals that were due and have a result."""
        return sum(block.offered for block in self.blocks)

    @property
    def good(self) -> int:
        """Arrivals that met the objective."""
        return sum(block.good for block in self.blocks)

    @property
    def bad(self) -> int:
        """Arrivals that missed the objective."""
        return self.offered - self.good

    @property
    def refused_requests(self) -> int:
        """Requests that were refused (429, 503)."""
        return sum(endpoint.refused for endpoint in self.endpoints)

    @property
    def failed_requests(self) -> int:
        """Requests that failed."""
        return sum(endpoint.failed for endpoint in self.endpoints)

    @property
    def bad_share(self) -> float:
        """Bad arrivals among those offered; 0 when none was due."""
        return self.bad / self.offered if self.offered else 0.0
