"""The schedule of a trial: due times and user classes of its arrivals. Pure: one seed, one schedule.

Arrivals of many independent visitors form a Poisson process: the gaps between them are exponential and do
not depend on what the service does (Schroeder, Wierman and Harchol-Balter, "Open Versus Closed: A
Cautionary Tale", NSDI 2006). The whole schedule is drawn before the trial begins, so that a slow answer
cannot move a later arrival.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

MAX_ARRIVALS = 5_000_000


def poisson(*, rate: float, duration_s: float, seed: int) -> array[float]:
    """Due times in seconds, ascending, all in ``[0, duration_s)``.

    With one seed, another rate gives the same gaps stretched or squeezed, so that two trials differ in
    nothing but their rate.

    Raises:
        ValueError: when rate or duration are not positive, or more than five million arrivals would be due.
    """
    if not rate > 0 or not duration_s > 0:
        raise ValueError("rate and duration_s must be positive")
    if rate * duration_s > MAX_ARRIVALS:
        raise ValueError(f"{rate * duration_s:.0f} arrivals in one trial are more than {MAX_ARRIVALS}")
    draw = random.Random(seed).expovariate  # noqa: S311 - a reproducible schedule, not a secret
    due: array[float] = array("d")
    at = draw(rate)
    while at < duration_s:
        due.append(at)
        at += draw(rate)
    return due


def draw_classes(count: int, *, shares: Sequence[float], seed: int) -> bytes:
    """Index of the user class of each arrival, drawn with probability proportional to ``shares``.

    Raises:
        ValueError: when there are no shares, more than 256 of them, or none is positive.
    """
    if not 0 < len(shares) <= 256 or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError("between 1 and 256 shares are needed, none negative, one at least positive")
    if len(shares) == 1:
        return bytes(count)
    # Another stream than the due times, or a class would be tied to short gaps.
    source = random.Random(f"classes {seed}")  # noqa: S311 - a reproducible schedule, not a secret
    return bytes(source.choices(range(len(shares)), weights=shares, k=count))


def apportion(users: int, *, weights: Sequence[float], fixed: Sequence[int]) -> list[int]:
    """Number of users of each class: first the fixed numbers, then the rest by weight.

    The rest is dealt by largest remainder, so that the numbers add up. A class with a fixed number takes
    no part in the rest; when there are too few users for all fixed numbers, earlier classes go first.
    """
    counts, left = [], users
    for number in fixed:
        counts.append(min(number, left))
        left -= counts[-1]
    free = [0.0 if number else weight for weight, number in zip(weights, fixed, strict=True)]
    total = sum(free)
    if not total:
        return counts
    exact = [left * weight / total for weight in free]
    counts = [count + int(part) for count, part in zip(counts, exact, strict=True)]
    by_remainder = sorted(range(len(exact)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in by_remainder[: users - sum(counts)]:
        counts[i] += 1
    return counts


def arrival_shares(users: int, *, weights: Sequence[float], fixed: Sequence[int]) -> list[float]:
    """Share of arrivals of each class when each of ``users`` is equally likely to act.

    A class with a fixed number of users gets that number of parts in ``users``, the others divide the
    rest by weight, however many of their users are logged in or busy at the moment.
    """
    users = max(users, 1)
    fixed_shares = [min(number / users, 1.0) for number in fixed]
    free = [0.0 if number else weight for weight, number in zip(weights, fixed, strict=True)]
    rest, total = max(0.0, 1.0 - sum(fixed_shares)), sum(free)
    if not total:
        return fixed_shares
    return [part + rest * weight / total for part, weight in zip(fixed_shares, free, strict=True)]
