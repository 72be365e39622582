"""Recovery between trials: waiting until the service is idle and answers as before. Pure.

Trials are independent only if each finds the service as the first one did. After a trial in which arrivals
missed the objective, single arrivals are sent, the first when all earlier requests are answered or half of
the wait is over, until ``PROBES`` in a row meet the objective. A service that does not get there is a finding
of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenfold.measure.report.report import BottleneckReport
from tenfold.measure.settings import Objective
from tenfold.measure.trial import Block, Trial, TrialRequest

PROBES = 3
PROBE_RATE = 10.0  # arrivals per second at most; each waits for the one before
LIMIT_S, LIMIT_SLOW = 20.0, 10.0  # the longest wait: seconds, or so many times the objective's limit
LONG_TASK_S = 2.0
LEAST_S = 3.0  # a shorter wait would prove nothing
UNANSWERED = "requests unanswered at the end"


@dataclass(frozen=True, slots=True)
class StopWhenIdle:
    """A stop rule: ends the wait when the backlog is gone, or when the service answers as before.

    ``answers``: one answer, good or bad, is not enough; ``PROBES`` in a row must meet the objective.
    """

    answers: bool
    probes: int = PROBES

    def should_stop(self, blocks: Sequence[Block]) -> bool:
        """Return whether the wait is over."""
        if self.answers:
            return is_answering(blocks, needed=self.probes)
        return any(block.offered for block in blocks)


def is_needed(trial: Trial, objective: Objective) -> bool:
    """Return whether the trial may have left the service in another state than it found it in."""
    return trial.bad_share > objective.bad_share or bool(trial.notes.get(UNANSWERED))


def is_answering(blocks: Sequence[Block], *, needed: int = PROBES) -> bool:
    """Return whether the last ``needed`` arrivals or more all met the objective."""
    probes = 0
    for block in reversed(blocks):
        if block.bad:
            return False
        probes += block.good
        if probes >= needed:
            return True
    return False


def limit_s(objective: Objective, *, task_s: float = 0.0) -> float:
    """The longest wait for a service, in seconds; long tasks are waited for, the old ones and a new one."""
    return max(LIMIT_S, LIMIT_SLOW * objective.slow_ms / 1000) + 2 * task_s


def wait_request(trial: Trial, *, seconds: float) -> TrialRequest:
    """The request for the wait after a trial."""
    refused = sum(block.refused for block in trial.blocks)
    answers = trial.request.purpose != "warm-up" or bool(trial.good and refused)
    idle_s = seconds / 2 if answers else seconds
    # A long task sends for as long as several short ones.
    rule = StopWhenIdle(answers, 1 if trial.task_s > LONG_TASK_S else PROBES)
    return TrialRequest(PROBE_RATE, seconds, "wait", trial.request.seed, rule=rule, settle_s=idle_s)


def finding(trial: Trial, waited: Trial, *, restarted: bool) -> BottleneckReport:
    """The finding about a service that does not recover from the load of ``trial``."""
    offered, bad = waited.offered, waited.bad
    probes = f"{bad} of {offered} single requests after it miss the objective" if offered else ""
    unanswered = trial.notes.get(UNANSWERED, 0)
    stuck = f"{unanswered} requests of it were still unanswered when it ended" if unanswered else ""
    after = "the instances were restarted" if restarted else "the search ended there: restart the service"
    return BottleneckReport(
        cause="no_recovery",
        kind="Overload",
        title="the service does not recover from overload",
        severity="critical",
        proof="proven",
        evidence=(
            f"{waited.seconds:.0f} s after {trial.request.rate:.3g} arrivals/s it does not answer as before",
            *filter(None, (stuck, probes)),
            after,
        ),
        where=None,
        remedy=(
            "bound what waits: a limit of concurrent requests (tenfold.overload), timeouts for checkouts and "
            "statements, and fewer requests at once than the connections they need"
        ),
    )
