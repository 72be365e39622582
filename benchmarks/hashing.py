"""The ring beside uhashring: lookups, adding a node, memory; ratios within one run.

    python -m benchmarks.hashing [--rounds 5] [--keys 100000] [--json]

Both of a pair take turns, so that other load on the machine hits both alike, and every second round the other
one begins. A ratio says how many times as fast the second is: the median of the rounds' ratios of CPU time,
with its quartiles. uhashring runs as its README shows it, with as many virtual nodes. Goal: a lookup in the
ring is at least as fast as in uhashring.
"""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import ratio_result, turns
from tenfold.hashing import HashRing, Jump, Rendezvous

VIRTUAL_NODES = 150
LOOKUP = 1.0  # goal, at least
Work = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """Timed work, and the untimed work that undoes it."""

    name: str
    work: Work
    undo: Work = field(default=lambda: None)


@dataclass(frozen=True)
class Pair:
    """Two contenders for one task; one call of each produces ``results`` results."""

    label: str
    base: Contender
    other: Contender
    results: int = 1
    goal: float | None = None


def loop(name: str, place: Callable[[str], object], keys: list[str]) -> Contender:
    return Contender(name, lambda: [place(key) for key in keys])


def peer(names: list[str]) -> Any:
    import uhashring

    return uhashring.HashRing(list(names), vnodes=VIRTUAL_NODES)


def rings(nodes: int) -> tuple[HashRing, Any, list[str]]:
    names = [f"node-{number}" for number in range(nodes)]
    return HashRing(names), peer(names), names


def lookups(nodes: int, count: int) -> Iterator[Pair]:
    ring, theirs, names = rings(nodes)
    keys = [f"user:{n}" for n in range(count)]
    uhash = loop("uhashring", theirs.get_node, keys)
    yield Pair("lookup", uhash, loop("get_node", ring.get_node, keys), count, LOOKUP)
    if nodes <= 10:
        yield Pair("lookup", uhash, loop("Rendezvous", Rendezvous(names).get_node, keys), count)
        yield Pair("lookup", uhash, loop("Jump", Jump(names).get_node, keys), count)


def changes(nodes: int) -> Iterator[Pair]:
    ring, theirs, names = rings(nodes)
    add = Contender("add", lambda: ring.add("new"), lambda: ring.remove("new"))
    yield Pair("add a node", Contender("HashRing anew", lambda: HashRing([*names, "new"])), add)
    added = Contender("uhashring", lambda: theirs.add_node("new"), lambda: theirs.remove_node("new"))
    yield Pair("add a node", added, add)


def seconds(contender: Contender) -> float:
    gc.collect()
    started = time.process_time()
    kept = contender.work()
    took = time.process_time() - started
    del kept
    contender.undo()
    return took


def compare(nodes: int, pair: Pair, rounds: int) -> Result:
    seconds(pair.other)
    times: dict[str, list[float]] = {"base": [], "other": []}
    for turn in turns(("base", "other"), rounds):
        times[turn].append(seconds(pair.base if turn == "base" else pair.other))
    base, other = (format_duration(statistics.median(found) / pair.results) for found in times.values())
    name = f"{nodes:,} nodes, {pair.label}: {pair.base.name} / {pair.other.name}"
    note = f"{base}, {other}"
    return ratio_result(name, times["base"], times["other"], goal=pair.goal, at_least=True, note=note)


def format_duration(duration_s: float) -> str:
    for unit, size in (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3)):
        if duration_s < 2_000 * size:
            return f"{duration_s / size:,.0f} {unit}"
    return f"{duration_s:,.1f} s"


def memory(make: Work) -> float:
    """Return the megabytes that a ring keeps allocated."""
    tracemalloc.start()
    kept = make()
    found = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    del kept
    return found


def results(*, rounds: int, keys: int) -> Iterator[Result]:
    for nodes in (8, 1_000):
        for pair in (*lookups(nodes, keys), *changes(nodes)):
            yield compare(nodes, pair, rounds)
        names = [f"node-{number}" for number in range(nodes)]
        ours = memory(lambda names=names: HashRing(names))
        theirs = memory(lambda names=names: peer(names))
        note = f"{theirs:.2f} MB, {ours:.2f} MB"
        yield Result(f"{nodes:,} nodes, memory: uhashring / HashRing", theirs / ours, note=note)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=100_000)
    options = parser.parse_args()
    print_results(results(rounds=options.rounds, keys=options.keys), as_json=options.json)


if __name__ == "__main__":
    main()
