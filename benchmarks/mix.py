"""The share of reads that ask a replica for its position: the example shop's users, on its own stack.

    python -m benchmarks.mix [--rate 40] [--seconds 30] [--json]

``benchmarks.database`` measures the cost of such a question; this counts them, by the router of each of the
shop's two instances (``tenfold_reads_total``), while its scenario sends its users' requests, open loop.
"""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.support.results import Result, benchmark_parser, print_results
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


def shares(found: Counter[str]) -> Iterator[Result]:
    """Yield the share of each outcome."""
    total = found.total()
    yield Result("reads", total)
    for outcome, meaning in READ_OUTCOMES.items():
        yield Result(f"share of {outcome}", found[outcome] / max(total, 1), note=meaning)


def main() -> None:
    """Count and print the shares."""
    parser = benchmark_parser(__doc__)
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
    rate = Result("requests/s", trial.requests / trial.seconds, note="two instances, two replicas")
    print_results([rate, *shares(found)], as_json=options.json)


if __name__ == "__main__":
    main()
