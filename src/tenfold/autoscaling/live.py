"""The same decision on what runs: look, decide, scale, again and again.

What is looked at and what scales are callables, so that the loop knows no stack: ``tenfold up --autoscale``
passes app instances behind nginx. Every look is kept, and :func:`replay` decides from them once more.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tenfold.autoscaling.hpa import Decision, State, reconcile
from tenfold.autoscaling.manifests import Metric, Scaler
from tenfold.autoscaling.proposals import (
    Pod,
    Proposal,
    Sample,
    for_average,
    for_pods_average,
    for_utilization,
    group_pods,
)
from tenfold.errors import SettingsError, TenfoldError

__all__ = ["Autoscaler", "Look", "Observed", "propose", "replay"]

_KEPT = 100_000
CPU_INITIALIZATION_S = 30.0
"""After its start an instance's CPU counts only while it is ready; on one machine they start in seconds."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is seen of the instances at one time.

    Attributes:
        replicas: the number that is wanted at present.
        pods: the instances.
        cpu: milli-cores by instance.
        requests: thousandths of requests per second by instance.
    """

    now: float
    replicas: int
    pods: tuple[Pod, ...]
    cpu: Mapping[str, Sample] = field(default_factory=dict)
    requests: Mapping[str, Sample] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen, and what was decided."""

    observed: Observed
    decision: Decision


def propose(scaler: Scaler, seen: Observed) -> list[Proposal]:
    """What the scaler's metrics ask for; memory is not looked at.

    Raises:
        SettingsError: there is neither CPU nor a request rate to look at.
    """
    proposals = [_propose(metric, scaler, seen) for metric in scaler.metrics if metric.name != "memory"]
    if not proposals:
        raise SettingsError(f"{scaler.place} looks at memory alone: set cpu_percent or requests_per_second")
    return proposals


def _propose(metric: Metric, scaler: Scaler, seen: Observed) -> Proposal:
    is_cpu = metric.name == "cpu"
    usage = group_pods(
        seen.pods,
        seen.cpu if is_cpu else seen.requests,
        now=seen.now,
        is_cpu=is_cpu,
        cpu_initialization_s=CPU_INITIALIZATION_S,
    )
    if is_cpu and metric.kind == "Utilization":
        found = for_utilization(seen.replicas, metric.target, usage, tolerance=scaler.tolerance)
    elif is_cpu or metric.source == "Pods":
        found = for_pods_average(seen.replicas, metric.target, usage, tolerance=scaler.tolerance)
    else:
        total = sum(sample.value for sample in seen.requests.values())
        found = for_average(seen.replicas, metric.target, total, tolerance=scaler.tolerance)
    return Proposal(found.replicas, found.usage, metric.name, found.reason, found.error)


def replay(scaler: Scaler, observations: Iterable[Observed]) -> list[Decision]:
    """Decide once more from what was seen; the same observations give the same decisions."""
    state, decisions = State(), []
    for seen in observations:
        decision, state = reconcile(scaler.hpa, seen.replicas, propose(scaler, seen), state, now=seen.now)
        decisions.append(decision)
    return decisions


class Autoscaler:
    """Looks every ``every_s`` seconds; scales in a thread of its own, so that it goes on looking meanwhile.

    Args:
        observe: what is seen now; called by the looking thread alone.
        scale: makes the number of instances so; called by the scaling thread alone.
        report: called with each look that changes the number, and with errors of ``scale``.
    """

    def __init__(
        self,
        scaler: Scaler,
        observe: Callable[[int], Observed],
        scale: Callable[[int], object],
        *,
        replicas: int,
        every_s: float = 15.0,
        report: Callable[[Look | TenfoldError], object] = lambda what: None,
    ) -> None:
        propose(scaler, Observed(0.0, replicas, ()))  # the scaler can be looked after, or this says why not
        self._scaler, self._observe, self._scale = scaler, observe, scale
        self._every_s, self._report = every_s, report
        self._state, self._wanted = State(), replicas
        self._done = replicas
        self._stopped, self._changed = threading.Event(), threading.Condition()
        self._threads: list[threading.Thread] = []
        self.looks: deque[Look] = deque(maxlen=_KEPT)

    @property
    def wanted(self) -> int:
        """The number that was decided last."""
        return self._wanted

    def look(self) -> Look:
        """Look and decide once."""
        seen = self._observe(self._wanted)
        decision, self._state = reconcile(
            self._scaler.hpa, seen.replicas, propose(self._scaler, seen), self._state, now=seen.now
        )
        found = Look(seen, decision)
        self.looks.append(found)
        if decision.replicas != self._wanted:
            self._report(found)
            with self._changed:
                self._wanted = decision.replicas
                self._changed.notify_all()
        return found

    def start(self) -> None:
        """Look and scale from now on."""
        for work in (self._look_on, self._scale_on):
            thread = threading.Thread(target=work, name="autoscaler", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, *, wait_s: float | None = None) -> None:
        """Stop looking; wait for what is being started or ended, at most ``wait_s`` seconds."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(wait_s)

    def _look_on(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self.look()
            except (TenfoldError, OSError) as error:
                self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not self._stopped.is_set():  # what ends meanwhile cannot be scaled any more
            self._report(error if isinstance(error, TenfoldError) else TenfoldError(str(error)))

    def _scale_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped.is_set() or self._wanted != self._done)
                if self._stopped.is_set():
                    return
                wanted = self._wanted
            try:
                self._scale(wanted)
                self._done = wanted
            except (TenfoldError, OSError) as error:
                self._tell(error)
                if self._stopped.wait(self._every_s):
                    return
