"""Checks of the measurement: a baseline is stored, percentiles are known, no statement is slow.

A stored baseline is the report of ``tenfold measure --save NAME``, at ``.tenfold/baselines/NAME.json``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.errors import SettingsError
from tenfold.measure.settings import Objective
from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.scenario import light_trial, open_generator

if TYPE_CHECKING:
    from tenfold.measure.probe.evidence import Evidence
    from tenfold.measure.report.report import Report

BASELINE = "baseline established"
PERCENTILES = "percentiles known"
SLOW_QUERIES = "slow queries found"

BASELINES = Path(".tenfold", "baselines")  # in the folder of tenfold.toml
_SAVE = "tenfold measure --save main"
# 10 requests beyond p99: the 95 % interval of that percentile then reaches from p98.3 to p99.7 (binomial).
_BEYOND_P99 = 10


class _UnusableReport(Exception):
    """A stored report cannot be used; the message says why."""

    verdict = Verdict.FAIL


class _NoReport(_UnusableReport):
    """None is stored: nothing was claimed that could be wrong."""

    verdict = Verdict.SKIP


def check_baseline(stack: Stack, settings: Settings) -> Finding:
    """Look for a baseline with a capacity, measured for the objective that is declared now.

    The newest one counts: an older one says nothing about the service as it is. Without any, it is skipped.
    """
    try:
        name, report = _newest(settings)
        low, high = _capacity(report)
        _require_objective(report, settings.measure.objective)
    except _UnusableReport as error:
        return Finding(BASELINE, str(error), error.verdict, remedy=_SAVE)
    claim = f"{name}: {low:g} – {high:g} arrivals/s"
    return Finding(BASELINE, claim, Verdict.PASS, {"low": low, "high": high})


def check_percentiles(stack: Stack, settings: Settings) -> Finding:
    """Look for p50, p95 and p99 in the newest baseline, from enough requests: at least 10 beyond p99."""
    try:
        name, report = _newest(settings)
        numbers = _percentiles(report)
    except _UnusableReport as error:
        return Finding(PERCENTILES, str(error), error.verdict, remedy=_SAVE)
    claim = f"{name}: " + " ".join(f"{key} {numbers[key]:g} ms" for key in ("p50", "p95", "p99"))
    return Finding(PERCENTILES, claim, Verdict.PASS, numbers)


def stored_capacity(settings: Settings) -> float | None:
    """The low end of the newest usable baseline, arrivals per second; None without one."""
    try:
        _, report = _newest(settings)
        _require_objective(report, settings.measure.objective)
        return _capacity(report)[0]
    except _UnusableReport:
        return None


# ------------------------------------------------------------------ stored reports


def _newest(settings: Settings) -> tuple[str, Report]:
    from tenfold.measure.report.report import load

    files = sorted(
        (settings.root / BASELINES).glob("*.json"), key=lambda file: (file.stat().st_mtime, file.name)
    )
    if not files:
        raise _NoReport("no baseline is stored")
    try:
        return files[-1].stem, load(files[-1])
    except SettingsError as error:
        raise _UnusableReport(str(error)) from None


def _capacity(report: Report) -> tuple[float, float]:
    low, high = (report.capacity.low, report.capacity.high) if report.capacity else (None, None)
    if low is None or high is None:
        raise _UnusableReport("the newest baseline has no capacity interval")
    if not 0 < low <= high:
        raise _UnusableReport(f"the newest baseline has no capacity: its interval is {low:g} – {high:g}")
    return low, high


def _require_objective(report: Report, objective: Objective) -> None:
    for key, wanted in objective.model_dump().items():
        if not math.isclose(found := getattr(report.objective, key), wanted):
            raise _UnusableReport(
                f"the newest baseline was measured for {key} = {found:g}, and it is {wanted:g} now"
            )


def _percentiles(report: Report) -> dict[str, float]:
    latency = report.latency_ms
    if latency is None:
        raise _UnusableReport("the newest baseline has no percentiles")
    needed = round(_BEYOND_P99 / 0.01)
    if latency.p99 is not None and not latency.p50 <= latency.p95 <= latency.p99:
        raise _UnusableReport("the newest baseline has percentiles that fall: its histogram is broken")
    if latency.p99 is None or report.samples < needed:
        raise _UnusableReport(f"p99 comes from {report.samples} requests; it takes {needed}")
    return {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99, "samples": report.samples}


# ------------------------------------------------------------------ slow queries


def check_slow_queries(stack: Stack, settings: Settings) -> Finding:
    """Send the scenario's requests for a few seconds and look for slow statements."""
    from tenfold.measure.probe.collector import Collector

    with Collector(stack.probe_address) as collector, open_generator(stack, settings) as generator:
        generator.start_users(settings.measure.users)
        generator.run(light_trial(settings))  # the probes connect meanwhile
        collector.reset()
        generator.run(light_trial(settings))
        return judge_slow_queries(collector.evidence())


def judge_slow_queries(evidence: Evidence, *, slow_ms: float = 100.0) -> Finding:
    """The finding about statements that take more than ``slow_ms`` on average, with their lines; pure.

    Without requests it fails, and without a statement that the probe sees it is skipped.
    """
    if not evidence.requests:
        return Finding(
            SLOW_QUERIES, "no request was seen", Verdict.FAIL, remedy="give the scenario work to do"
        )
    if not evidence.seen.get("statements"):
        claim = "no statement was seen (SQLAlchemy, Django, asyncpg and psycopg 3 are)"
        return Finding(SLOW_QUERIES, claim, Verdict.SKIP)
    slow = sorted((use for use in evidence.statements if use.mean_ms > slow_ms), key=lambda use: -use.mean_ms)
    numbers = {"statements": len(evidence.statements), "slow": len(slow), "slow_ms": slow_ms}
    if not slow:
        claim = f"none of {len(evidence.statements)} statements takes more than {slow_ms:g} ms"
        return Finding(SLOW_QUERIES, claim, Verdict.PASS, numbers)
    named = "; ".join(
        f"{use.mean_ms:.0f} ms at {use.site or use.route}: {_shorten(use.fingerprint)}" for use in slow[:3]
    )
    more = f"; and {len(slow) - 3} more" if len(slow) > 3 else ""
    return Finding(
        SLOW_QUERIES, named + more, Verdict.FAIL, numbers, "EXPLAIN them: tenfold measure shows how"
    )


def _shorten(statement: str) -> str:
    flat = " ".join(statement.split())
    return flat if len(flat) <= 80 else f"{flat[:79]}…"
