"""Visitors who write and read counters through a cache, and what they must not see."""

from __future__ import annotations

import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from tenfold.caching import QueryCache
from tenfold.database import DatabaseRouter

READ = text("select value from counters where id = :id")
WRITE = text("update counters set value = value + 1 where id = :id returning value")


@dataclass
class History:
    """The values of a counter and when each was committed; the lock makes one of the two orders certain."""

    times: list[float] = field(default_factory=lambda: [0.0])
    values: list[int] = field(default_factory=lambda: [0])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def value_at(self, moment: float) -> int:
        return self.values[bisect_right(self.times, moment) - 1]


@dataclass
class Outcome:
    """What was counted."""

    reads: int = 0
    writes: int = 0
    older_than_seen: int = 0
    older_than_bound: int = 0
    oldest_s: float = 0.0
    errors: list[BaseException] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Workload:
    """Visitors on one router and caches over it, one for each process that they stand for."""

    def __init__(
        self,
        router: DatabaseRouter,
        caches: list[QueryCache],
        *,
        counters: int = 5,
        bound_s: float,
        write_share: float = 0.1,
        seed: int = 1,
    ) -> None:
        self.router, self.caches, self.bound_s, self.write_share = router, caches, bound_s, write_share
        self.histories = [History() for _ in range(counters)]
        self.outcome = Outcome()
        self.seed = seed
        self.functions = [self._cached(cache) for cache in caches]
        with router.write() as session:
            session.execute(text("update counters set value = 0"))
        for cache in caches:
            cache.invalidate(*(f"counter:{n}" for n in range(counters)))

    def _cached(self, cache: QueryCache) -> Callable[[int], int]:
        @cache.query(ttl=60, tags=["counter:{counter}"], name="workload.read")
        def read(counter: int) -> int:
            with self.router.read() as session:
                value: int = session.execute(READ, {"id": counter}).scalar_one()
                return value

        return read

    def run(self, *, visitors: int = 6, operations: int = 2000) -> Outcome:
        threads = [
            threading.Thread(target=self._visit, args=(number, operations // visitors))
            for number in range(visitors)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        if self.outcome.errors:
            raise self.outcome.errors[0]
        return self.outcome

    def _visit(self, number: int, operations: int) -> None:
        """Even visitors carry a token; odd ones none."""
        random_ = random.Random(f"{self.seed} {number}")
        token: str | None = None
        seen = [0] * len(self.histories)
        try:
            for _ in range(operations):
                place = random_.randrange(len(self.caches))
                counter = random_.randrange(len(self.histories))
                with self.router.consistency_context(token):
                    if random_.random() < self.write_share:
                        seen[counter] = max(seen[counter], self._write(self.caches[place], counter))
                    else:
                        self._read(place, counter, seen, has_token=number % 2 == 0)
                    if number % 2 == 0:
                        token = self.router.token()
        except BaseException as error:
            self.outcome.errors.append(error)

    def _write(self, cache: QueryCache, counter: int) -> int:
        history = self.histories[counter]
        with history.lock, self.router.write() as session:
            value: int = session.execute(WRITE, {"id": counter}).scalar_one()
            cache.invalidate(f"counter:{counter}", session=session)
            session.commit()
            history.values.append(value)
            history.times.append(time.monotonic())
        with self.outcome.lock:
            self.outcome.writes += 1
        return value

    def _read(self, place: int, counter: int, seen: list[int], *, has_token: bool) -> None:
        history = self.histories[counter]
        started = time.monotonic()
        value = self.functions[place](counter)
        with self.outcome.lock:
            self.outcome.reads += 1
            if has_token and value < seen[counter]:
                self.outcome.older_than_seen += 1
            if value < history.value_at(started - self.bound_s):
                self.outcome.older_than_bound += 1
        seen[counter] = max(seen[counter], value)


def describe(outcome: Outcome) -> dict[str, Any]:
    return {name: value for name, value in vars(outcome).items() if isinstance(value, (int, float))}
