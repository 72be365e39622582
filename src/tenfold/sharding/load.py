"""Which shard, bucket and tenant takes how much of the load, and what would even it out."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tenfold.sharding.directory import Directory
from tenfold.sharding.keys import BUCKETS

__all__ = ["LoadCounter", "ShardLoad", "summarize_load"]

_MOST_KEYS = 4096  # counted at once; the lighter half is forgotten above that
_REPORTED = 200
_HOT = 0.2  # of all load in one tenant
_UNEVEN = 1.5  # peak to average


class LoadCounter:
    """Seconds and number of sessions by key, since they were last taken. Bounded: light keys are merged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[tuple[int, str], tuple[int, float]] = {}
        self._buckets: dict[tuple[int, str], tuple[int, float]] = {}  # of light keys, whose text is ""

    def record(self, bucket: int, key: str, seconds: float) -> None:
        """Count one session."""
        with self._lock:
            _add(self._keys if key else self._buckets, (bucket, key), 1, seconds)
            if len(self._keys) > _MOST_KEYS:
                self._merge_light_keys(_MOST_KEYS // 2)

    def take(self) -> list[tuple[int, str, int, float]]:
        """Return bucket, key, sessions and seconds, and begin anew; the heaviest 200, the rest by bucket."""
        with self._lock:
            self._merge_light_keys(_REPORTED)
            counts = self._keys | self._buckets
            self._keys, self._buckets = {}, {}
        return [(*at, *found) for at, found in counts.items()]

    def _merge_light_keys(self, keep: int) -> None:
        heaviest = sorted(self._keys, key=lambda at: -self._keys[at][1])
        for at in heaviest[keep:]:
            _add(self._buckets, (at[0], ""), *self._keys.pop(at))


def _add(
    counts: dict[tuple[int, str], tuple[int, float]], at: tuple[int, str], sessions: int, seconds: float
) -> None:
    known = counts.get(at, (0, 0.0))
    counts[at] = known[0] + sessions, known[1] + seconds


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """Shares of the seconds that sessions took, 0 to 1, the largest first.

    Attributes:
        sessions: their number.
        shards: by shard, those without load too.
        buckets: the ten heaviest.
        tenants: the ten heaviest, by encoded key.
        peak: the heaviest shard's share, as a multiple of the mean.
        finding: a sentence with the tenant or bucket to move; "" when the load is even enough.
    """

    sessions: int
    shards: dict[str, float]
    buckets: dict[int, float]
    tenants: dict[str, float]
    peak: float
    finding: str


def summarize_load(directory: Directory, rows: Iterable[tuple[int, str, int, float]]) -> ShardLoad:
    """Sum up rows of bucket, encoded key (or ""), sessions and seconds."""
    seconds: dict[str, dict[Any, float]] = {"shard": {}, "bucket": {}, "tenant": {}}
    sessions = 0
    for bucket, key, count, spent in rows:
        if (place := directory.buckets.get(bucket)) is None:
            continue
        sessions += count
        for kind, name in (("shard", place.shard), ("bucket", bucket), ("tenant", key)):
            if name != "":
                seconds[kind][name] = seconds[kind].get(name, 0.0) + spent
    total = sum(seconds["shard"].values()) or 1.0
    shares = {name: _shares(counts, total) for name, counts in seconds.items()}
    shards = dict.fromkeys(directory.shard_epochs, 0.0) | shares["shard"]
    shards = dict(sorted(shards.items(), key=lambda item: -item[1]))
    peak = max(shards.values()) * len(shards)
    finding = _find_uneven_load(directory, shards, shares["bucket"], shares["tenant"], peak)
    return ShardLoad(sessions, shards, shares["bucket"], shares["tenant"], peak, finding)


def _shares(seconds: dict[Any, float], total: float) -> dict[Any, float]:
    return {name: seconds[name] / total for name in sorted(seconds, key=lambda name: -seconds[name])[:10]}


def _find_uneven_load(
    directory: Directory,
    shards: dict[str, float],
    buckets: dict[int, float],
    tenants: dict[str, float],
    peak: float,
) -> str:
    if peak <= _UNEVEN or len(shards) == 1:
        return ""
    hottest = next(iter(shards))
    said = f"shard {hottest} takes {shards[hottest]:.0%} of the load, {peak:.1f} times its share"
    tenant, share = next(iter(tenants.items()), ("", 0.0))
    bucket = next(
        (number for number in buckets if directory.buckets[number].shard == hottest and number < BUCKETS),
        None,
    )
    if share >= _HOT:
        return (
            f"{said}; tenant {tenant.partition(':')[2]} alone takes {share:.0%}: give it a shard of its own"
        )
    if bucket is not None:
        return f"{said}; move bucket {bucket} ({buckets[bucket]:.0%}) first: tenfold shards plan"
    return said
