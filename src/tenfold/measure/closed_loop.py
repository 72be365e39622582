"""Closed-loop run: a fixed number of users at Locust's own pace, for comparisons. It gives no capacity."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from tenfold import __version__
from tenfold.measure.load.generator import Generator
from tenfold.measure.load.target import without_credentials
from tenfold.measure.measurement import Progress, machine
from tenfold.measure.report import summary
from tenfold.measure.report.report import ObjectiveReport, Report
from tenfold.measure.settings import MeasureSettings


def measure_closed_loop(
    generator: Generator,
    settings: MeasureSettings,
    *,
    service: str,
    target: str,
    duration_s: float,
    progress: Callable[[Progress], None],
) -> Report:
    """Run ``settings.users`` users in a loop for ``duration_s`` seconds, and report.

    A looping user waits for its answer before it sends again, so that a slow service gets fewer requests: the
    latencies are those of a load that adapts to the service (coordinated omission), and the report says so.
    """
    begun, started = time.monotonic(), datetime.now(UTC)
    trial = generator.run_closed_loop(
        users=settings.users,
        spawn_rate=settings.spawn_rate,
        duration_s=duration_s,
        on_block=lambda block: progress(
            Progress("closed loop", 0.0, time.monotonic() - begun, duration_s, ())
        ),
    )
    ends = summary.endpoints([trial])
    requests = trial.requests
    return Report(
        tenfold=__version__,
        service=service,
        target=without_credentials(target),
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - begun,
        mode="closed",
        inside=False,
        interrupted=trial.interrupted,
        objective=ObjectiveReport(**settings.objective.model_dump()),
        machine=machine([trial]),
        latency_ms=summary.latency([trial.raw]),
        raw_latency_ms=summary.latency([trial.raw]),
        measured_rate=trial.request.rate,
        samples=requests - trial.refused_requests,
        error_share=trial.failed_requests / requests if requests else None,
        refused_share=trial.refused_requests / requests if requests else None,
        achieved_rps=requests / trial.seconds if trial.seconds else None,
        generator_cpu=trial.generator.cpu_share,
        endpoints=ends,
        trials=(summary.trial(trial, started_s=0.0, verdict=""),),
        notices=(
            "closed loop: users wait for the service before they ask again, so that its queue is not seen; "
            "leave --closed out for a capacity",
        ),
        errors=summary.errors([trial]),
    )
