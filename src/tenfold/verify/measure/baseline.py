"""Proof that the service was measured: a baseline is stored, percentiles are known, slow queries are named.

A stored baseline is the report of ``tenfold measure --save NAME``, at ``.tenfold/baselines/NAME.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tenfold.measure.settings import MeasureSettings, Objective
from tenfold.measure.trial import TrialRequest
from tenfold.types import Finding, Stack, Verdict

BASELINE = "baseline established"
PERCENTILES = "percentiles known"
SLOW_QUERIES = "slow queries found"

_SAVE = "tenfold measure --save main"
# 10 arrivals beyond p99: the 95 % interval of that percentile then reaches from p98.3 to p99.7 (binomial).
_BEYOND_P99 = 10
# A load that no service notices, long enough for every task of a scenario to come.
_LIGHT_RATE, _LIGHT_S = 10.0, 4.0
_PERCENTILES = ("p50", "p95", "p99")


class _Unusable(Exception):
    """A stored report that proves nothing; the message says why."""


def baseline_established(stack: Stack, settings: MeasureSettings, *, folder: Path) -> Finding:
    """Whether ``folder`` holds a baseline with a capacity, measured for the objective that is in force now.

    The newest one counts: an older one says nothing about the service as it is.
    """
    try:
        name, report = _newest(folder)
        low, high = _capacity(report)
        _same_objective(report, settings.objective)
    except _Unusable as error:
        return Finding(BASELINE, str(error), Verdict.FAIL, remedy=_SAVE)
    claim = f"{name}: {low:g} – {high:g} requests/s"
    return Finding(BASELINE, claim, Verdict.PASS, {"low": low, "high": high})


def percentiles_known(stack: Stack, settings: MeasureSettings, *, folder: Path) -> Finding:
    """Whether the newest baseline has p50, p95 and p99 of enough arrivals: at least 10 beyond p99."""
    try:
        name, report = _newest(folder)
        numbers = _percentiles(report)
    except _Unusable as error:
        return Finding(PERCENTILES, str(error), Verdict.FAIL, remedy=_SAVE)
    claim = f"{name}: " + " ".join(f"{key} {numbers[key]:g} ms" for key in _PERCENTILES)
    return Finding(PERCENTILES, claim, Verdict.PASS, numbers)


def known_capacity(settings: MeasureSettings, *, folder: Path) -> float | None:
    """The low end of the newest usable baseline, arrivals per second; None without one."""
    try:
        _, report = _newest(folder)
        _same_objective(report, settings.objective)
        return _capacity(report)[0]
    except _Unusable:
        return None


def light_load(stack: Stack, settings: MeasureSettings, *, root: Path) -> None:
    """Send what the scenario's users send (relative to ``root``) for a few seconds, at a low rate."""
    from tenfold.measure.load.generator import Generator

    with Generator(root / settings.scenario, stack.url, settings=settings, cwd=root) as generator:
        generator.start_users(settings.users)
        generator.run(TrialRequest(_LIGHT_RATE, _LIGHT_S, "warm-up", settings.seed))


# ------------------------------------------------------------------ stored reports


def _newest(folder: Path) -> tuple[str, Mapping[str, Any]]:
    files = sorted(folder.glob("*.json"), key=lambda file: (file.stat().st_mtime, file.name))
    if not files:
        raise _Unusable("no baseline is stored")
    name = files[-1].stem
    try:
        report = json.loads(files[-1].read_bytes())
    except (OSError, ValueError):
        raise _Unusable(f"{name} cannot be read as JSON") from None
    if not isinstance(report, dict):
        raise _Unusable(f"{name} is no report")
    return name, report


def _number(table: Any, key: str) -> float:
    value = table.get(key) if isinstance(table, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _Unusable(f"the newest baseline has no {key}")
    return float(value)


def _capacity(report: Mapping[str, Any]) -> tuple[float, float]:
    capacity = report.get("capacity")
    low, high = _number(capacity, "low"), _number(capacity, "high")
    if not 0 < low <= high:
        raise _Unusable(f"the newest baseline has no capacity: its interval is {low:g} – {high:g}")
    return low, high


def _same_objective(report: Mapping[str, Any], objective: Objective) -> None:
    measured = report.get("objective")
    for key, wanted in objective.model_dump().items():
        if not math.isclose(found := _number(measured, key), wanted):
            raise _Unusable(
                f"the newest baseline was measured for {key} = {found:g}, and it is {wanted:g} now"
            )


def _percentiles(report: Mapping[str, Any]) -> dict[str, float]:
    latency = report.get("latency_ms")
    numbers = {key: _number(latency, key) for key in _PERCENTILES}
    numbers["samples"] = _number(report, "samples")
    if sorted(numbers[key] for key in _PERCENTILES) != [numbers[key] for key in _PERCENTILES]:
        raise _Unusable("the newest baseline has percentiles that fall: its histogram is broken")
    needed = round(_BEYOND_P99 / 0.01)
    if numbers["samples"] < needed:
        raise _Unusable(f"p99 comes from {numbers['samples']:g} arrivals; it takes {needed:g}")
    return numbers


# ------------------------------------------------------------------ slow queries


class StatementStats(Protocol):
    """What this check asks of one statement from one line in one route."""

    @property
    def route(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def site(self) -> str: ...
    @property
    def executions(self) -> int: ...
    @property
    def mean_ms(self) -> float: ...


class Evidence(Protocol):
    """What this check asks of what the probes saw."""

    @property
    def requests(self) -> int: ...
    @property
    def seen(self) -> Mapping[str, bool]: ...
    @property
    def statements(self) -> Sequence[StatementStats]: ...


def slow_queries(stack: Stack, settings: MeasureSettings, *, root: Path) -> Finding:
    """Drive the scenario (relative to ``root``) for a few seconds and look for slow statements."""
    from tenfold.measure.load.generator import Generator
    from tenfold.measure.probe.collector import Collector

    request = TrialRequest(_LIGHT_RATE, _LIGHT_S, "warm-up", settings.seed)
    with (
        Collector(stack.probe_address) as collector,
        Generator(root / settings.scenario, stack.url, settings=settings, cwd=root) as generator,
    ):
        generator.start_users(settings.users)
        generator.run(request)  # the probes connect meanwhile
        collector.reset()
        generator.run(request)
        return slow_queries_found(collector.evidence())


def slow_queries_found(evidence: Evidence, *, slow_ms: float = 100.0) -> Finding:
    """Whether no statement takes more than ``slow_ms`` on average; the slowest are named with their lines.

    Without requests, or without SQLAlchemy in the service, nothing was seen, and that is no pass.
    """
    if not evidence.requests:
        return Finding(
            SLOW_QUERIES, "no request was seen", Verdict.FAIL, remedy="give the scenario work to do"
        )
    if not evidence.seen.get("sqlalchemy"):
        return Finding(SLOW_QUERIES, "not seen: the service does not use SQLAlchemy", Verdict.SKIP)
    slow = sorted((use for use in evidence.statements if use.mean_ms > slow_ms), key=lambda use: -use.mean_ms)
    numbers = {"statements": len(evidence.statements), "slow": len(slow), "slow_ms": slow_ms}
    if not slow:
        claim = f"none of {len(evidence.statements)} statements takes more than {slow_ms:g} ms"
        return Finding(SLOW_QUERIES, claim, Verdict.PASS, numbers)
    named = "; ".join(
        f"{use.mean_ms:.0f} ms at {use.site or use.route}: {_short(use.fingerprint)}" for use in slow[:3]
    )
    more = f"; and {len(slow) - 3} more" if len(slow) > 3 else ""
    return Finding(
        SLOW_QUERIES, named + more, Verdict.FAIL, numbers, "EXPLAIN them: tenfold measure shows how"
    )


def _short(statement: str) -> str:
    flat = " ".join(statement.split())
    return flat if len(flat) <= 80 else f"{flat[:79]}…"
