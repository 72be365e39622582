"""Uneven load over instances: which one has more than its share, and why. Pure.

The facts are lines of the access log (:data:`tenfold.deploy.nginx.ACCESS_LOG`). Three reasons are told apart:
one *key* that makes up the surplus, a *weight* that the instance cannot carry, and a *slow node* that takes
longer for the same. A difference counts when it is both too large for chance (chi-squared for counts, Welch's
t for times) and large enough to matter; with many requests the first alone is no news.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

CHANCE = 0.001
"""Below this probability a difference is not put down to chance."""
_T = 3.3  # the two-sided quantile of the normal distribution that belongs to CHANCE
_MOST_KEYS = 1000
_LEAST_REQUESTS = 5  # expected for each node, below which chi-squared is no good approximation


class Reason(StrEnum):
    """Why a node has more to do than the others."""

    HOT_KEY = "hot key"
    WEIGHT = "weight"
    SLOW_NODE = "slow node"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Load:
    """What one node did: requests and the seconds spent on them, failed attempts, requests by key."""

    requests: int = 0
    busy_s: float = 0.0
    squares: float = 0.0
    failed: int = 0
    keys: Counter[str] = field(default_factory=Counter)

    @property
    def mean_s(self) -> float:
        """Seconds per request."""
        return self.busy_s / self.requests if self.requests else 0.0

    @property
    def variance(self) -> float:
        """Of the seconds per request; 0 for fewer than two."""
        if self.requests < 2:
            return 0.0
        return max(0.0, (self.squares - self.requests * self.mean_s**2) / (self.requests - 1))

    def add(self, seconds: float, key: str) -> None:
        """Count one request. Beyond a thousand keys the rare ones are forgotten: a hot one is not rare."""
        self.requests += 1
        self.busy_s += seconds
        self.squares += seconds * seconds
        self.keys[key] += 1
        if len(self.keys) > _MOST_KEYS:
            self.keys = Counter(dict(self.keys.most_common(_MOST_KEYS // 2)))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a request at one node; ``seconds`` is None where the log has no time."""

    node: str
    status: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Skew:
    """One node that is busier than its share, or slower than the others.

    Attributes:
        node: its address.
        reason: why.
        claim: a sentence with the numbers.
        remedy: what to do about it.
        numbers: requests, their expected number, seconds busy, mean seconds here and elsewhere.
    """

    node: str
    reason: Reason
    claim: str
    remedy: str
    numbers: Mapping[str, float | int | str]


def attempts(row: Mapping[str, object]) -> tuple[Attempt, ...]:
    """The tries of one request, in order: nginx joins those of a retry by ", ", those of a redirect by " : ".

    What never reached a node (nginx writes the upstream's name when all are down) is left out.
    """
    nodes, states, times = (
        str(row.get(name) or "").replace(" : ", ", ").split(", ")
        for name in ("upstream_addr", "upstream_status", "upstream_response_time")
    )
    found = []
    for number, node in enumerate(nodes):
        if ":" in node:
            status = states[number] if number < len(states) else "-"
            found.append(Attempt(node, status, _seconds(times, number)))
    return tuple(found)


def _seconds(times: Sequence[str], number: int) -> float | None:
    try:
        seconds = float(times[number])
    except (IndexError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def loads(
    rows: Iterable[Mapping[str, object]],
    *,
    nodes: Iterable[str] = (),
    key: Callable[[Mapping[str, object]], str] = lambda row: str(row.get("path", "")),
) -> dict[str, Load]:
    """What each node did, by its address.

    Args:
        rows: lines of the access log.
        nodes: addresses that count even if they did nothing.
        key: what a request is hashed by; the path unless told otherwise.
    """
    found = {node: Load() for node in nodes}
    for row in rows:
        for attempt in attempts(row):
            load = found.setdefault(attempt.node, Load())
            load.add(attempt.seconds or 0.0, key(row))
            load.failed += attempt.status in ("502", "504", "-")
    return found


def skews(
    found: Mapping[str, Load],
    *,
    weights: Mapping[str, float] | None = None,
    tolerance: float = 0.25,
    slow_ratio: float = 1.5,
) -> tuple[Skew, ...]:
    """The nodes whose load stands out, each with its reason; none when load is even.

    Args:
        found: what :func:`loads` says.
        weights: the configured ones; equal when left out. Backups and nodes that are down do not belong here.
        tolerance: how much more than its share a node may have.
        slow_ratio: how much longer than the others a node may take for a request.
    """
    if len(found) < 2 or not (total := sum(load.requests for load in found.values())):
        return ()
    shares = _shares(found, weights)
    told = []
    for node in sorted(found):
        load = found[node]
        expected = total * shares[node]
        rest = _rest(found, node)
        if _is_slower(load, rest, slow_ratio):
            told.append(_slow(node, load, rest, expected))
        elif _is_more(load.requests, expected, total, tolerance):
            told.append(_crowded(node, load, total, shares[node], tolerance))
        elif _is_overweight(load, found, shares[node], tolerance):
            told.append(_heavy(node, load, expected))
    if any(skew.reason is Reason.SLOW_NODE for skew in told):  # what a slow node leaves, the others get
        told = [skew for skew in told if skew.reason is not Reason.UNKNOWN]
    return tuple(told)


def _shares(found: Mapping[str, Load], weights: Mapping[str, float] | None) -> dict[str, float]:
    given = {node: (weights or {}).get(node, 1.0) for node in found}
    total = sum(given.values())
    return {node: weight / total for node, weight in given.items()}


def _rest(found: Mapping[str, Load], node: str) -> Load:
    others = [load for name, load in found.items() if name != node]
    return Load(
        requests=sum(load.requests for load in others),
        busy_s=sum(load.busy_s for load in others),
        squares=sum(load.squares for load in others),
    )


def _is_slower(load: Load, rest: Load, ratio: float) -> bool:
    """Welch's t test, as for large samples."""
    if load.requests < 2 or rest.requests < 2 or load.mean_s < ratio * rest.mean_s:
        return False
    spread = math.sqrt(load.variance / load.requests + rest.variance / rest.requests)
    return load.mean_s - rest.mean_s > _T * spread


def _is_more(count: int, expected: float, total: int, tolerance: float) -> bool:
    if count <= expected * (1 + tolerance):
        return False
    return chi_squared((count, total - count), (expected, total - expected)).p < CHANCE


def _is_overweight(load: Load, found: Mapping[str, Load], share: float, tolerance: float) -> bool:
    """Whether it has what its weight says, and that keeps it busier than the others are."""
    if share * len(found) <= 1 + tolerance:
        return False
    return load.busy_s > (1 + tolerance) * sum(other.busy_s for other in found.values()) / len(found)


def _slow(node: str, load: Load, rest: Load, expected: float) -> Skew:
    return Skew(
        node,
        Reason.SLOW_NODE,
        f"{node} takes {1000 * load.mean_s:.1f} ms for a request, the others {1000 * rest.mean_s:.1f} ms",
        "look at its machine: processor, memory, neighbours; until then give it less weight or take it out",
        _numbers(load, expected, elsewhere_s=round(rest.mean_s, 6)),
    )


def _crowded(node: str, load: Load, total: int, share: float, tolerance: float) -> Skew:
    expected = total * share
    said = f"{node} has {load.requests / total:.0%} of the requests where {share:.0%} is its share"
    key, count = load.keys.most_common(1)[0]
    without = total - count
    if (
        not _is_more(load.requests - count, without * share, without, tolerance)
        and count > load.requests * 0.05
    ):
        return Skew(
            node,
            Reason.HOT_KEY,
            f"{said}; {count} of its {load.requests} are for {key}",
            "cache what this key answers, split the key, or hash with bounded loads",
            _numbers(load, expected, key=key, key_requests=count),
        )
    return Skew(
        node,
        Reason.UNKNOWN,
        said,
        "share out by least_conn, or look for clients that are bound to this instance",
        _numbers(load, expected),
    )


def _heavy(node: str, load: Load, expected: float) -> Skew:
    return Skew(
        node,
        Reason.WEIGHT,
        f"{node} is busier than the others for its weight: {load.requests} requests, {load.busy_s:.1f} s",
        "lower its weight, unless its machine is that much larger",
        _numbers(load, expected),
    )


def _numbers(load: Load, expected: float, **more: float | int | str) -> dict[str, float | int | str]:
    return {
        "requests": load.requests,
        "expected": round(expected, 1),
        "busy_s": round(load.busy_s, 3),
        "mean_s": round(load.mean_s, 6),
        **more,
    }


# Chi-squared


@dataclass(frozen=True, slots=True)
class Fit:
    """How far counts are from what was expected: the statistic, and the probability of more by chance."""

    statistic: float
    p: float


def chi_squared(counts: Sequence[float], expected: Sequence[float] | None = None) -> Fit:
    """Pearson's test of ``counts`` against ``expected``, or against equal ones.

    The probability is 1 where it could not be told: fewer than two cells, or fewer than 5 expected in one.
    """
    if expected is None:
        expected = [sum(counts) / len(counts)] * len(counts) if counts else []
    if len(counts) < 2 or min(expected) < _LEAST_REQUESTS:
        return Fit(0.0, 1.0)
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))
    return Fit(statistic, _upper_gamma((len(counts) - 1) / 2, statistic / 2))


def _upper_gamma(a: float, x: float) -> float:
    """The regularised upper incomplete gamma function (DLMF 8.7.1 below its bend, Lentz on 8.9.2 above)."""
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        n = a
        while term > total * 1e-16:
            n += 1
            term *= x / n
            total += term
        return max(0.0, 1 - scale * total)
    b = x + 1 - a
    c, d = 1e300, 1 / b
    fraction = d
    for i in range(1, 1000):
        step = -i * (i - a)
        b += 2
        d = 1 / (step * d + b)
        c = b + step / c
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return scale * fraction
