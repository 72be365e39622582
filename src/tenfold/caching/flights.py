"""Single flight: one load at a time for a key and the generations of its tags, in this process."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

__all__ = ["Flight", "Flights"]


class Flight:
    """A load under way, and its outcome: an entry, or None if its followers have to look for themselves."""

    __slots__ = ("_flights", "_key", "future")

    def __init__(self, flights: Flights, key: Hashable) -> None:
        self._flights, self._key = flights, key
        self.future: Future[Any] = Future()

    def finish(self, outcome: Any) -> None:
        """End it; followers get ``outcome``. The next caller begins another."""
        self._flights.forget(self._key)
        if not self.future.done():
            self.future.set_result(outcome)


class Flights:
    """The loads under way. From any thread and event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, Flight] = {}

    def join(self, key: Hashable) -> tuple[Flight, bool]:
        """Return the flight of a key, and whether the caller leads it: it has to finish it then."""
        with self._lock:
            flight = self._under_way.get(key)
            if flight is not None:
                return flight, False
            flight = self._under_way[key] = Flight(self, key)
            return flight, True

    def forget(self, key: Hashable) -> None:
        """Forget a flight that has finished."""
        with self._lock:
            self._under_way.pop(key, None)
