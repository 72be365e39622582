"""The ring beside uhashring: single lookups, a million keys at once, one node more; ratios in one run.

    python -m benchmarks.hashing [--rounds 5] [--keys 1000000]

Both of a pair take turns, so that whatever else the machine does hits both alike, and every second round
the other one begins. Times are medians of CPU time; a ratio is the median of the rounds' ratios, with the
lowest and the highest beside it. uhashring runs as its README shows it, with as many virtual nodes. A batch
is compared with a loop over the same keys; for an array the loop has the same numbers as a list. numpy's
tables are there when the clock starts: the first batch on a changed ring costs some milliseconds more.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import uhashring

from tenfold.hashing import HashRing, Jump, Rendezvous

VIRTUAL_NODES = 150
Work = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """What is timed, and what puts things back afterwards, untimed."""

    name: str
    work: Work
    undo: Work = field(default=lambda: None)


@dataclass(frozen=True)
class Pair:
    """Two ways to the same end; one call of each makes ``results`` of them."""

    label: str
    base: Contender
    other: Contender
    results: int = 1


def loop(name: str, place: Callable[[str | int], object], keys: list[str] | list[int]) -> Contender:
    return Contender(name, lambda: [place(key) for key in keys])


def rings(nodes: int) -> tuple[HashRing, uhashring.HashRing, list[str]]:
    names = [f"node-{number}" for number in range(nodes)]
    return HashRing(names), uhashring.HashRing(list(names), vnodes=VIRTUAL_NODES), names


def lookups(nodes: int, count: int) -> Iterator[Pair]:
    ring, theirs, names = rings(nodes)
    texts, numbers = [f"user:{n}" for n in range(count)], list(range(10**7, 10**7 + count))
    some = texts[: count // 10]
    uhash = loop("uhashring", theirs.get_node, some)
    yield Pair("lookup, str", uhash, loop("get_node", ring.get_node, some), len(some))
    if nodes <= 10:
        yield Pair("lookup, str", uhash, loop("Rendezvous", Rendezvous(names).get_node, some), len(some))
        yield Pair("lookup, str", uhash, loop("Jump", Jump(names).get_node, some), len(some))
    arrays = {"list of str": texts, "list of int": numbers, "array of int": np.array(numbers)}
    for label, keys in arrays.items():
        many = Contender("get_many", lambda keys=keys: ring.get_many(keys))
        singles = numbers if "int" in label else texts
        yield Pair(label, loop("get_node loop", ring.get_node, singles), many, count)
    many = Contender("get_many", lambda: ring.get_many(texts))
    yield Pair("list of str", loop("uhashring loop", theirs.get_node, texts), many, count)


def changes(nodes: int) -> Iterator[Pair]:
    ring, theirs, names = rings(nodes)
    add = Contender("add", lambda: ring.add("new"), lambda: ring.remove("new"))
    yield Pair("one node more", Contender("HashRing anew", lambda: HashRing([*names, "new"])), add)
    added = Contender("uhashring", lambda: theirs.add_node("new"), lambda: theirs.remove_node("new"))
    yield Pair("one node more", added, add)


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
    medians = [shown(statistics.median(times) / pair.results) for times in (base, other)]
    spread = f"{ratios[0]:.1f} – {ratios[-1]:.1f}"
    return (
        f"{pair.label:<14}{pair.base.name:<15}{medians[0]:>8} {pair.other.name:<11}{medians[1]:>8}"
        f"{statistics.median(ratios):>8.1f}{spread:>15}"
    )


def shown(duration_s: float) -> str:
    for unit, size in (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3)):
        if duration_s < 2_000 * size:
            return f"{duration_s / size:,.0f} {unit}"
    return f"{duration_s:,.1f} s"


def memory(make: Work) -> float:
    """Megabytes that a ring keeps."""
    tracemalloc.start()
    kept = make()
    found = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    del kept
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keys", type=int, default=1_000_000)
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
