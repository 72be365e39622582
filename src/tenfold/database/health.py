"""How far a replica is behind, and whether it may serve. Pure: samples come in, verdicts come out.

Lag is what the *router* sees: which positions the primary had when, and which one the replica has now.
``now() - pg_last_xact_replay_timestamp()`` grows on a replica whose primary has nothing to write, and says
nothing of bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["HealthLimits", "Lag", "PrimaryTrack", "may_serve"]

_SAMPLES = 600


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """When a replica no longer gets reads.

    Attributes:
        max_lag_bytes: log that it has yet to replay.
        max_lag_s: how long ago the primary had what it still lacks. A token must live longer than this.
        sample_s: seconds between two samples of every server; 0 takes none, and lag is not known then.
        hang_s: a replica that leaves the router without an answer for so long is taken for hung: its
            connections are cut, so that reads waiting on it fail and go elsewhere.
    """

    max_lag_bytes: int = 64 * 1024 * 1024
    max_lag_s: float = 10.0
    sample_s: float = 0.5
    hang_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind: bytes of log, and seconds since the primary had the first byte that is lacking."""

    bytes: int = 0
    seconds: float = 0.0


class PrimaryTrack:
    """Where the primary was when. Seconds are as exact as the samples are frequent."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self.timeline = 0

    def add(self, at: float, timeline: int, position: int) -> None:
        """The primary of ``timeline`` was there at ``at``; samples of a former timeline are forgotten."""
        if timeline != self.timeline:
            self._samples.clear()
            self.timeline = timeline
        if not self._samples or position > self._samples[-1][1]:  # what stood still has nothing to tell
            self._samples.append((at, position))

    def lag(self, timeline: int, replayed: int, *, now: float) -> Lag:
        """How far behind a replica is that has replayed so much of its ``timeline``.

        One that has not followed a promotion lacks all that was written since; so it is late by that time,
        whatever its position says. A later timeline than the primary's has nothing to be measured by.
        """
        if not self._samples or timeline > self.timeline:
            return Lag()
        latest = self._samples[-1][1]
        if timeline < self.timeline:
            return Lag(max(0, latest - replayed), now - self._samples[0][0])
        if replayed >= latest:
            return Lag()
        lacking = next(at for at, position in self._samples if position > replayed)
        return Lag(latest - replayed, max(0.0, now - lacking))


def may_serve(lag: Lag, limits: HealthLimits, *, serving: bool) -> bool:
    """Whether a replica with this lag gets reads. One that lost them comes back at half of each limit."""
    share = 1.0 if serving else 0.5
    return lag.bytes <= share * limits.max_lag_bytes and lag.seconds <= share * limits.max_lag_s
