"""Example reports with a capacity interval, built from named parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tenfold.measure.report.report import (
    BottleneckReport,
    CapacityReport,
    EndpointReport,
    Latency,
    LimitReport,
    ObjectiveReport,
    OverloadReport,
    PartReport,
    Report,
    SeriesReport,
    TrialReport,
)


def capacity(**changes: Any) -> CapacityReport:
    """A capacity of 56 – 61 arrivals per second."""
    return replace(
        CapacityReport(
            outcome="found",
            low=56.0,
            high=61.0,
            confidence=0.95,
            reason="11 % wide, as narrow as required",
            seconds=71.0,
            trials=9,
        ),
        **changes,
    )


def trial(rate: float, **changes: Any) -> TrialReport:
    """A trial in which one arrival in a hundred was slow."""
    return replace(
        TrialReport(
            purpose="search",
            rate=rate,
            seconds=4.0,
            offered=int(rate * 4),
            good=int(rate * 4) - int(rate * 0.04),
            slow=int(rate * 0.04),
            failed=0,
            refused=0,
            unsent=0,
            in_flight_max=7,
            corrected_ms=Latency(p50=rate / 2, p95=rate * 2, p99=rate * 3),
            raw_ms=Latency(p50=rate / 2, p95=rate * 2, p99=rate * 3),
            generator_cpu=0.3,
            generator_late=0.0,
            steal=0.01,
        ),
        **changes,
    )


def report(**changes: Any) -> Report:
    """A whole report; ``changes`` replace fields of it."""
    whole = Report(
        tenfold="0.1.0",
        service="shop (naive)",
        target="http://127.0.0.1:8080",
        started="2026-01-02T03:04:05Z",
        seconds=88.0,
        mode="open",
        inside=True,
        objective=ObjectiveReport(slow_ms=200.0, bad_share=0.05, achieved_share=0.98),
        machine={"cores": 2, "memory GiB": 24},
        capacity=capacity(),
        latency_ms=Latency(p50=34.0, p95=176.0, p99=251.0),
        raw_latency_ms=Latency(p50=33.0, p95=150.0, p99=200.0),
        measured_rate=56.0,
        samples=1200,
        error_share=0.0,
        refused_share=0.0,
        achieved_rps=56.1,
        overload=OverloadReport(
            rate=87.0,
            seconds=10.0,
            goodput=22.0,
            kept=0.38,
            refused_share=0.0,
            recovered_s=7.0,
            watched_s=15.0,
        ),
        generator_cpu=0.31,
        generator_late=0.0,
        endpoints=(
            EndpointReport(
                name="GET /api/orders",
                requests=120,
                failed=0,
                refused=0,
                corrected_ms=Latency(p50=90, p95=190, p99=260),
                raw_ms=Latency(p50=90, p95=180, p99=250),
            ),
        ),
        trials=(trial(10), trial(20), trial(40), trial(80)),
        series=(SeriesReport(name="app", seconds=(0.0, 1.0, 2.0), values=(0.1, 0.8, 0.9)),),
        limit=LimitReport(
            resource="pool",
            title="the connection pool, full 83 % of the time (2 connections)",
            chain=("requests wait for a connection", "connections are held by requests that compute"),
            evidence=("a connection is held for 18.6 ms",),
            remedy="hold connections for less time",
        ),
        parts=(
            PartReport(name="pool", low_ms=0.0, limit_ms=81.7),
            PartReport(name="run", low_ms=None, limit_ms=11.9),
        ),
        stacks=(
            ("GET /api/orders;run;shop/app:main;shop/orders:<load>", 3.0),
            ("GET /api/orders;pool;shop/app:main", 1.0),
        ),
        present=("missing index on orders (user_id): 9.0 ms; CREATE INDEX ON orders (user_id)",),
        bottlenecks=(
            BottleneckReport(
                cause="n_plus_one",
                kind="Database",
                title="N+1 in GET /api/orders",
                severity="critical",
                proof="suspected",
                evidence=("51 statements in GET /api/orders",),
                where="shop/naive/orders.py:48",
                remedy="load the items with the orders (selectinload)",
                share=0.71,
            ),
        ),
        not_measured=("Disk (no privileges for …)",),
    )
    return replace(whole, **changes)
