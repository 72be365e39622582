"""The ring beside uhashring: lookups, adding a node, memory; ratios within one run.

    python -m benchmarks.hashing [--rounds 5] [--keys 100000]

Both of a pair take turns, so that other load on the machine hits both alike, and every second round the other
one begins. Times are medians of CPU time; a ratio is the median of the rounds' ratios, with the lowest and
the highest beside it. uhashring runs as its README shows it, with as many virtual nodes.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import uhashring

from tenfold.hashing import HashRing, Jump, Rendezvous

VIRTUAL_NODES = 150
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


def loop(name: str, place: Callable[[str], object], keys: list[str]) -> Contender:
    return Contender(name, lambda: [place(key) for key in keys])


def rings(nodes: int) -> tuple[HashRing, uhashring.HashRing, list[str]]:
    names = [f"node-{number}" for number in range(nodes)]
    return HashRing(names), uhashring.HashRing(list(names), vnodes=VIRTUAL_NODES), names


def lookups(nodes: int, count: int) -> Iterator[Pair]:
    ring, theirs, names = rings(nodes)
    keys = [f"user:{n}" for n in range(count)]
    uhash = loop("uhashring", theirs.get_node, keys)
    yield Pair("lookup", uhash, loop("get_node", ring.get_node, keys), count)
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


def compare(pair: Pair, rounds: int) -> str:
    seconds(pair.other)
    base, other = [], []
    for number in range(rounds):
        turns = [(base, pair.base), (other, pair.other)]
        for times, contender in turns[:: 1 if number % 2 else -1]:
            times.append(seconds(contender))
    ratios = sorted(b / o for b, o in zip(base, other, strict=True))
    medians = [format_duration(statistics.median(times) / pair.results) for times in (base, other)]
    spread = f"{ratios[0]:.1f} – {ratios[-1]:.1f}"
    return (
        f"{pair.label:<14}{pair.base.name:<15}{medians[0]:>8} {pair.other.name:<11}{medians[1]:>8}"
        f"{statistics.median(ratios):>8.1f}{spread:>15}"
    )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=100_000)
    options = parser.parse_args()
    for nodes in (8, 1_000):
        print(f"{nodes:,} nodes × {VIRTUAL_NODES}: time per result, and how many times as fast the second is")
        for pair in (*lookups(nodes, options.keys), *changes(nodes)):
            print(compare(pair, options.rounds), flush=True)
        names = [f"node-{number}" for number in range(nodes)]
        ours = memory(lambda names=names: HashRing(names))
        theirs = memory(lambda names=names: uhashring.HashRing(names, vnodes=VIRTUAL_NODES))
        print(f"memory        uhashring {theirs:.2f} MB, HashRing {ours:.2f} MB: {theirs / ours:.1f} times\n")


if __name__ == "__main__":
    main()
