"""Scalers through traces of request rates: late requests and replica-hours beside others; and the speed.

    python -m benchmarks.autoscaling [--days 14] [--json]

The default [autoscaling] settings (3 to 100 instances, CPU 70 %), AWS target tracking, a schedule, the peak
at all times and an oracle that knows the trace and aims for the same utilization; instances of 100/s that are
ready after 20 s. Goals: on daily and weekly traces at most a quarter more replica-hours than the oracle, and
no more late requests; 60 days in steps of 15 s in at most 10 s.
"""

from __future__ import annotations

import time

from benchmarks.support.results import Result, benchmark_parser, print_results
from tenfold.autoscaling.policies import (
    first_number,
    hpa_policy,
    oracle,
    scheduled,
    static_peak,
    target_rate,
    target_tracking,
)
from tenfold.autoscaling.settings import AutoscalingSettings
from tenfold.autoscaling.simulation import Service, simulate
from tenfold.autoscaling.traces import GENERATED, generate_trace

SERVICE = Service(instance_rps=100, cpu=1000, cpu_request=1000)
PEAK = 4000.0


def compare(kind: str, days: float) -> list[Result]:
    """The results of one trace."""
    scaler = AutoscalingSettings(memory_percent=0).scaler("tenfold")
    rates = generate_trace(kind, peak=PEAK, days=days)
    each = target_rate(scaler, SERVICE)
    least, most = scaler.hpa.min_replicas, scaler.hpa.max_replicas
    policies = {
        "tenfold": hpa_policy(scaler, SERVICE),
        "AWS target tracking": target_tracking(each, least=least, most=most),
        "by the hour": scheduled(rates, each, least=least, most=most),
        "always the peak": static_peak(rates, each),
        "oracle": oracle(rates, each, SERVICE, least=least, most=most),
    }
    start = first_number(scaler, rates, SERVICE)
    found = {name: simulate(name, rates, SERVICE, policy, start=start) for name, policy in policies.items()}
    best = found["oracle"]
    is_judged = kind in ("daily", "weekly")
    results = []
    for name, outcome in found.items():
        own = name == "tenfold" and is_judged
        results.append(Result(f"{kind}, {name}: late, %", outcome.late_share * 100, 0.01 if own else None))
        if name != "oracle":
            hours = outcome.replica_hours / best.replica_hours
            results.append(Result(f"{kind}, {name}: hours, × oracle", hours, 1.25 if own else None))
    return results


def measure_speed() -> Result:
    """How long 60 days of one policy take."""
    scaler = AutoscalingSettings().scaler()
    rates = generate_trace("daily", peak=PEAK, days=60)
    begun = time.perf_counter()
    simulate("speed", rates, SERVICE, hpa_policy(scaler, SERVICE), start=3)
    return Result("60 days in steps of 15 s, s", time.perf_counter() - begun, 10.0)


def main() -> None:
    """Print the results."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--days", type=float, default=14)
    options = parser.parse_args()
    results = [result for kind in GENERATED for result in compare(kind, options.days)]
    print_results([*results, measure_speed()], as_json=options.json)


if __name__ == "__main__":
    main()
