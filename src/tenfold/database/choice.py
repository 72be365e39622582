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
_MEMORY_S = 5.0


@dataclass(slots=True)
class Load:
    """How busy one server is, as seen from this process: reads in flight and how long a statement takes.

    The time is a moving average whose memory fades with time, not with the number of statements: a server
    that was slow and then got no reads is tried again. Losing one of two updates to a race costs nothing.
    """

    in_flight: int = 0
    average_s: float = _TYPICAL_S
    _at: float = -math.inf

    def took(self, seconds: float, *, now: float) -> None:
        """A statement took so long."""
        if now <= self._at:
            return
        kept = math.exp(-(now - self._at) / _MEMORY_S)
        # Statements that follow each other closely still count a little each.
        kept = min(kept, 0.95)
        self.average_s = kept * self.average_s + (1 - kept) * seconds
        self._at = now

    def cost(self, now: float) -> float:
        """What one read more would wait for, roughly."""
        faded = math.exp(-max(0.0, now - self._at) / _MEMORY_S)
        return (self.in_flight + 1) * (faded * self.average_s + (1 - faded) * _TYPICAL_S)


def order(
    loads: Sequence[Load],
    *,
    choice: Choice,
    turn: int,
    now: float,
    below: Callable[[int], int],
) -> list[int]:
    """The indices of ``loads``, the one to ask first at the front, the rest for when that one cannot.

    ``least`` is the power of two choices (Mitzenmacher, 2001): of two at random the cheaper one. Asking *all*
    for the cheapest would send every process of a fleet to the same server at the same moment.

    Args:
        turn: grows with every call; what ``round-robin`` goes by.
        below: a random whole number from 0 up to its argument, exclusively.
    """
    count = len(loads)
    if count < 2:
        return list(range(count))
    first = turn % count if choice == "round-robin" else below(count)
    rest = [(first + step) % count for step in range(1, count)]
    if choice != "least":
        return [first, *rest]
    other = rest[below(count - 1)]
    if loads[other].cost(now) < loads[first].cost(now):
        first, other = other, first
    return [first, other, *(index for index in rest if index not in (first, other))]
