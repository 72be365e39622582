"""When a session is over, and when its expiry is pushed back. Pure: every time is an argument.

Two clocks share the work. That a session is *idle* is the store's to notice: each write gives the payload a
lifetime there, so that a step of some instance's wall clock logs nobody out and brings nobody back. The wall
clock decides only about the absolute end, days away, and about when a refresh is due.
"""

from __future__ import annotations

IDLE_S = 3600.0
ABSOLUTE_S = 7 * 86_400.0
REFRESHES = 10  # at most so many in an idle lifetime


def is_over(now: float, ends: float) -> bool:
    """Whether the absolute lifetime has passed."""
    return now >= ends


def is_idle(now: float, seen: float, idle_s: float) -> bool:
    """Whether nobody came for ``idle_s``; only for what no store expires."""
    return now - seen >= idle_s


def is_due(now: float, seen: float, idle_s: float) -> bool:
    """Whether this request pushes the idle expiry back.

    Between two refreshes lies a tenth of ``idle_s``, so a session lives between 0.9 and 1.0 × ``idle_s``
    after its last request, never longer. A ``seen`` from the future, left by a clock that has been put right,
    is replaced too.
    """
    return abs(now - seen) * REFRESHES >= idle_s


def lifetime_s(now: float, ends: float, idle_s: float) -> float:
    """What the store is told: the idle time, cut off at the absolute end."""
    return max(0.001, min(idle_s, ends - now))
