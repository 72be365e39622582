"""Which of several replicas gets this read. Pure: what is known of each comes in, an order comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["CHOICES", "Choice", "Load", "order"]

Choice = Literal["least", "random", "round-robin"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

_TYPICAL_S = 0.001
_MEMORY_S = 0.5
_MOST_KEPT = 0.95
_IN_A_ROW_S = -_MEMORY_S * math.log(_MOST_KEPT)
_LEAST_S = 0.00002
_CHANCE = 1.5  # costs that differ by less than this differ by chance


@dataclass(slots=True)
class Load:
    """How busy one server is, as seen from this process: reads in flight and how long a statement takes.

    The time is a moving average. What nobody has asked for a while fades to nothing, so that a server that
    was slow is tried again: five seconds after, if it took ten thousand times as long as the others. Of two
    updates at the same moment one may be lost; it is an average.
    """

    in_flight: int = 0
    average_s: float = _TYPICAL_S
    _at: float = -math.inf

    def took(self, seconds: float, *, now: float) -> None:
        """A statement took so long."""
        # Of many in a row each counts for a twentieth; the first after a pause replaces what was remembered.
        pause = now - self._at
        kept = _MOST_KEPT if pause < _IN_A_ROW_S else math.exp(-pause / _MEMORY_S)
        self.average_s = kept * self.average_s + (1 - kept) * seconds
        self._at = now

    def cost(self, now: float) -> float:
        """What one read more would wait for, roughly."""
        faded = math.exp(min(0.0, self._at - now) / _MEMORY_S)
        return (self.in_flight + 1) * max(_LEAST_S, faded * self.average_s)


def order(
    loads: Sequence[Load],
    *,
    choice: Choice,
    turn: int,
    now: float,
    below: Callable[[int], int],
) -> list[int]:
    """The indices of ``loads``, the one to ask first at the front, the rest for when that one cannot.

    ``least`` is the power of two choices (Mitzenmacher, 2001): of two at random the cheaper one, if it is
    cheaper by more than chance. Asking *all* for the cheapest would send every process of a fleet to the same
    server at the same moment.

    Args:
        turn: grows with every call; what ``round-robin`` goes by.
        below: a random whole number from 0 up to its argument, exclusively.
    """
    count = len(loads)
    if count < 2:
        return list(range(count))
    first = turn % count if choice == "round-robin" else below(count)
    if choice != "least":
        return [(first + step) % count for step in range(count)]
    other = 1 - first if count == 2 else (first + 1 + below(count - 1)) % count
    if loads[other].cost(now) * _CHANCE < loads[first].cost(now):
        first, other = other, first
    if count == 2:
        return [first, other]
    turned = ((first + step) % count for step in range(1, count))
    return [first, other, *(index for index in turned if index != other)]
