"""The share of reads that ask a replica for its position: the example shop's users, on its own stack.

    python -m benchmarks.mix [--rate 40] [--seconds 30]

``benchmarks.database`` measures the cost of such a question; this counts them, by the router of each of the
shop's two instances (``tenfold_reads_total``), while its scenario sends its users' requests, open loop.
"""

from __future__ import annotations

import argparse
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tenfold.database.replicas.read_counters import READ_OUTCOMES
from tenfold.measure.load.generator import Generator
from tenfold.measure.trial import TrialRequest
from tenfold.metrics import READS
from tenfold.settings import load
from tenfold.stack import Stack
from tenfold.types import Server
from tenfold.verify.kit.instances import app_servers

SHOP = Path(__file__).parent.parent / "examples" / "scaled.toml"
WARM_S, FLUSH_S = 5.0, 2.0


def count_reads(servers: Iterable[Server]) -> Counter[str]:
    """Reads so far by outcome, of all instances."""
    found: Counter[str] = Counter()
    for server in servers:
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.name == READS.name:
                        found[sample.labels["outcome"]] += int(sample.value)
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=40.0, help="arrivals per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    settings = load(SHOP, environ={})
    measure = settings.measure
    with Stack(settings) as stack:
        scenario = settings.root / measure.scenario
        with Generator(scenario, stack.url, settings=measure, cwd=settings.root) as generator:
            generator.start_users(measure.users)
            generator.run(TrialRequest(options.rate, WARM_S, "warm-up", measure.seed))
            generator.run(TrialRequest(0.1, FLUSH_S, "warm-up", measure.seed))  # metrics are a second old
            before = count_reads(app_servers(stack))
            trial = generator.run(TrialRequest(options.rate, options.seconds, "confirm", measure.seed + 1))
            generator.run(TrialRequest(0.1, FLUSH_S, "warm-up", measure.seed))
            found = count_reads(app_servers(stack)) - before
    total = found.total()
    rate = trial.requests / trial.seconds
    print(f"{rate:.0f} requests/s for {trial.seconds:.0f} s, two instances, two replicas: {total} reads")
    for outcome, meaning in READ_OUTCOMES.items():
        print(f"{outcome:<20}{found[outcome]:>8}{found[outcome] / max(total, 1):>8.1%}   {meaning}")


if __name__ == "__main__":
    main()
