"""Capacity model: an interval of the rate at which the share of bad arrivals crosses the limit.

One trial near the capacity says little: bad arrivals come in runs, a trial begins with an empty service, and
a service at 98 % of its capacity looks for seconds like one at 102 %. So all trials are read together, by
a model of what queues have in common when they are nearly full (Kingman, "The single server queue in heavy
traffic", 1961; for M/M/1 it is exact):

* the share of arrivals slower than ``slow_s`` grows exponentially with the rate, above a floor that is
  there at any rate: ``share(rate) = floor + (limit - floor) · (rate / capacity) ** steepness``;
* ``1 / steepness = 1 / (drive · capacity · slow_s) + disturbance``: ``drive`` is 2 / (squared variation of
  the gaps + that of the work), so 1 for M/M/1 and 2 for constant work; ``disturbance`` is what does not
  average out as the rate grows (another tenant, a garbage collector);
* the steeper, the slower: the load at the limit is ``1 / (1 + k / steepness)`` with ``k = -ln(limit)``,
  runs of bad arrivals have the size of busy periods, ``2 · load / (1 - load)²`` times the variation, and
  an empty service needs about ``4 / k² · steepness · slow_s`` to look like its steady state.

The posterior over a grid of capacity (flat in its logarithm), drive, disturbance and floor is the interval.
Counts are weighed by their variance inflation (quasi-likelihood: Wedderburn, 1974): the larger of what the
model says and of what the trials show from second to second, and more where the best fit still misses them.
Being estimated, it makes the tails those of a Student distribution.

Limits: disturbances that stay for some tenths of a second or longer are seen as often as they happen to
fall into a trial, and the interval is too narrow for them (``python -m benchmarks.capacity`` prints by how
much). The model is that of a queue; a service that is no queue is covered as far as the disturbances reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenfold.measure.search.sequential import ArrivalCount

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CAP = 0.95  # shares above it count as this one
DRIVES = (0.1, 0.16, 0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0)
DRIVE_PRIOR = (0.8, 0.5)  # lognormal: median and standard deviation of the logarithm
DISTURBANCES = ((0.0, 0.6), (0.04, 0.25), (0.12, 0.15))  # value and prior weight
DISTURBANCE_RUNS = 1.0  # how much longer than a queue's own runs those of a disturbance last
FLOOR_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
FLATTEST = 1.5  # the least steepness
RUN_S = 0.6  # prior duration of a run of bad arrivals ...
RUN_WEIGHT = 4.0  # ... and its weight in seconds of observation
FITTED = 3.0  # capacity, steepness and floor
FREEDOM = 60.0
RESOLUTION = 100  # capacities on the grid


@dataclass(frozen=True, slots=True)
class TrialCounts:
    """The counted part of one trial: its rate, its counts second by second, and its whole length."""

    rate: float
    seconds: float
    counts: tuple[ArrivalCount, ...]

    @property
    def offered(self) -> int:
        """Arrivals counted."""
        return sum(count.offered for count in self.counts)

    @property
    def bad(self) -> int:
        """Arrivals that missed the objective."""
        return sum(count.bad for count in self.counts)

    @property
    def share(self) -> float:
        """Share of bad arrivals among those counted."""
        return self.bad / self.offered


@dataclass(frozen=True, slots=True)
class CapacityEstimate:
    """Quantiles of the capacity, arrivals per second."""

    low: float  # low and high: the interval of the requested confidence
    q30: float  # trials at the 30 % and the 70 % quantile tell most
    median: float
    q70: float
    high: float
    floor: float  # share of arrivals that is bad at any rate
    run_s: float  # duration of runs of bad arrivals at the capacity


def estimate_capacity(
    trials: Sequence[TrialCounts],
    *,
    limit: float,
    slow_s: float,
    confidence: float = 0.95,
    correlated: bool = True,
) -> CapacityEstimate:
    """Estimate the rate at which the share of bad arrivals reaches ``limit``.

    Every trial needs arrivals. ``correlated=False`` treats each arrival as an independent coin flip and each
    trial as a steady state; it is there to show how far the intervals are off then.

    Raises ValueError without trials.
    """
    if not trials:
        raise ValueError("the capacity cannot be estimated without a trial")
    import numpy as np

    columns = _Columns.of(trials)
    widest = np.linspace(np.log(columns.rate.min() / 2), np.log(columns.rate.max() * 1.5), RESOLUTION + 20)
    grid = widest
    middle = 0.8 * min((t.rate for t in trials if t.share > 2 * limit), default=columns.rate.max() * 1.5)
    expected = np.where(columns.rate < 0.875 * middle, 0.0, limit)
    tail = (1 - confidence) / 2
    for _ in range(3):  # each pass looks closer, and knows better which trials are far below
        floors = _floors(trials, limit=limit, below=0.8 * middle)
        floor = float(floors[len(floors) // 2])
        run_s, weight = run_length(trials, limit=limit, floor=floor)
        observed = columns.inflation(expected, run_s=run_s, limit=limit, floor=floor)
        model = _Model(columns, grid, limit=limit, slow_s=slow_s, correlated=correlated)
        mass, steepness = model.posterior(floors, observed, freedom=FREEDOM + weight)
        below = np.cumsum(mass) - mass / 2
        found = np.interp([tail, 0.3, 0.5, 0.7, 1 - tail], below, grid)
        middle = float(np.exp(found[2]))
        expected = floor + (limit - floor) * np.exp(
            np.minimum(steepness * np.log(columns.rate / middle), 10.0)
        )
        spread = max(found[-1] - found[0], 2 * (grid[1] - grid[0]))
        grid = np.linspace(max(found[0] - spread, widest[0]), min(found[-1] + spread, widest[-1]), RESOLUTION)
    low, q30, median, q70, high = (float(rate) for rate in np.exp(found))
    return CapacityEstimate(low, q30, median, q70, high, floor, run_s)


def run_length(trials: Sequence[TrialCounts], *, limit: float, floor: float) -> tuple[float, float]:
    """Duration of runs of bad arrivals at the limit, in seconds, and the seconds of observation behind it.

    From the variance of the counts of one and of two seconds (Pearson's statistic). An interval cuts runs at
    its ends, an error in inverse proportion to its length, so the two are extrapolated (for batch means:
    Vats and Flegal, "Lugsail lag windows", 2022).
    """
    single, _ = _runs(trials, 1, limit=limit, floor=floor)
    double, weight = _runs(trials, 2, limit=limit, floor=floor)
    run_s = max(single, double, 2 * double - single)
    return (RUN_WEIGHT * RUN_S + weight * run_s) / (RUN_WEIGHT + weight), weight


def _runs(trials: Sequence[TrialCounts], join: int, *, limit: float, floor: float) -> tuple[float, float]:
    excess = scale = weight = 0.0
    for trial in trials:
        counts = _joined(trial.counts, join)
        share, freedom = trial.share, len(counts) - 1
        if freedom < 1 or not 0 < share < 0.3:  # above it is an overload that builds up, no steady state
            continue
        squares = sum((c.bad - c.offered * share) ** 2 / c.offered for c in counts if c.offered)
        size = _size(share - floor, limit)
        excess += (squares / (share * (1 - share)) - freedom) / trial.rate
        scale += freedom * size
        weight += freedom * min(size, 1.0)
    return (max(0.0, excess / scale), weight) if scale else (0.0, 0.0)


def _joined(counts: Sequence[ArrivalCount], join: int) -> list[ArrivalCount]:
    groups = [counts[i : i + join] for i in range(0, len(counts) - join + 1, join)]
    return [ArrivalCount(sum(c.offered for c in group), sum(c.bad for c in group)) for group in groups]


def _size(excess: float, limit: float) -> float:
    """Length of runs at this share relative to that at the limit: it grows about as the square root."""
    return float((max(excess, 0.02 * limit) / limit) ** 0.5)


def _floors(trials: Sequence[TrialCounts], *, limit: float, below: float) -> Floats:
    """Likely shares at rates far below the capacity: quantiles of the posterior from the trials there."""
    import numpy as np
    from scipy.special import betaincinv

    calm = [t for t in trials if t.rate <= below and t.share < 2 * limit]
    bad, good = sum(t.bad for t in calm), sum(t.offered - t.bad for t in calm)
    floors: Floats = betaincinv(bad + 0.3, good + 3, np.array(FLOOR_QUANTILES))
    return np.minimum(floors, 0.9 * limit)


@dataclass(frozen=True, slots=True)
class _Columns:
    """The trials as columns."""

    rate: Floats
    seconds: Floats
    offered: Floats
    share: Floats

    @classmethod
    def of(cls, trials: Sequence[TrialCounts]) -> _Columns:
        import numpy as np

        rows = [(t.rate, t.seconds, t.offered, min(t.share, CAP)) for t in trials]
        return cls(*np.array(rows, dtype=float).T)

    def inflation(self, expected: Floats, *, run_s: float, limit: float, floor: float) -> Floats:
        """Variance inflation by runs of ``run_s`` at the share seen or expected; a floor has no runs."""
        import numpy as np

        above: Floats = np.maximum(self.share - floor, np.minimum(expected - floor, limit))
        above = np.clip(above, 0.0, 0.3)
        runs: Floats = self.rate * run_s * np.sqrt(above / limit)
        inflation: Floats = 1 + runs * above / np.maximum(above + floor, 1e-9)
        return inflation


class _Model:
    """Expected shares of all trials: arrays over (disturbance, drive, capacity, trial)."""

    def __init__(
        self, columns: _Columns, grid: Floats, *, limit: float, slow_s: float, correlated: bool
    ) -> None:
        import numpy as np

        self._columns, self._limit, self._correlated = columns, limit, correlated
        near = columns.rate > 0.8 * np.exp(np.median(grid))
        self._freedom = max(float(near.sum()) - FITTED, 1.0)
        capacity = np.exp(grid)[:, None]
        drive = np.array(DRIVES)[:, None, None]
        disturbance = np.array([value for value, _ in DISTURBANCES])[:, None, None, None]
        relative = np.log(columns.rate) - grid[:, None]
        k = -np.log(limit)
        self.steepness = np.maximum(1 / (1 / (drive * slow_s * capacity) + disturbance), FLATTEST)
        self._growth = np.exp(np.minimum(self.steepness * relative, 12.0))
        full = 1 + k / self.steepness  # the rate at which the service is full, over its capacity
        idle = np.abs(1 - np.exp(relative) / full)
        if correlated:
            idle_at_limit = 1 - 1 / full
            slowing = np.minimum((idle_at_limit / np.maximum(idle, idle_at_limit / 2)) ** 2, 4.0)
            settling_s = 4 / k**2 * self.steepness * slow_s * slowing
            self._growth *= 1 - np.exp(-columns.seconds / settling_s)
        load = np.exp(np.minimum(relative, 0.0)) / full
        variation = 1 / drive + DISTURBANCE_RUNS * disturbance * slow_s * capacity
        self._inflation = 2 * variation * load / (1 - load) ** 2
        # An overload beyond chance: the backlog reaches slow_s in time by so many standard deviations.
        drift = (np.exp(relative) / full - 1) * columns.seconds - slow_s
        deviations = drift / np.sqrt(columns.seconds * 2 * self.steepness**-1 * slow_s)
        self._overload = np.where(deviations > 0, deviations**2 / (-2 * np.log(1 - CAP)), 0.0)

    def posterior(self, floors: Floats, observed: Floats, *, freedom: float) -> tuple[Floats, float]:
        """Posterior mass of each capacity, and the mean steepness."""
        import numpy as np

        weight = self._weight(observed)
        deviance = np.array([self._deviance(float(floor), weight) for floor in floors])
        misfit = float(deviance.min()) / self._freedom if self._correlated else 1.0
        worse = (deviance - deviance.min()) / max(misfit, 1.0)
        mass = ((1 + worse / freedom) ** (-(freedom + 1) / 2)).sum(axis=0) * _prior()
        steepness = np.exp((mass * np.log(self.steepness[..., 0])).sum() / mass.sum())
        mass = mass.sum(axis=(0, 1))
        return mass / mass.sum(), float(steepness)

    def _weight(self, observed: Floats) -> Floats:
        """Number of independent arrivals that each trial is worth."""
        import numpy as np

        offered = self._columns.offered
        if not self._correlated:
            return np.broadcast_to(offered, self._inflation.shape)
        inflation = np.minimum(np.maximum(observed, self._inflation), 2 * offered)
        weight: Floats = offered / inflation + self._overload
        return weight

    def _deviance(self, floor: float, weight: Floats) -> Floats:
        import numpy as np

        share = self._columns.share
        expected = np.clip(floor + (self._limit - floor) * self._growth, 1e-6, CAP)
        best = share * np.log(np.maximum(share, 1e-12)) + (1 - share) * np.log1p(-share)
        observed = share * np.log(expected) + (1 - share) * np.log1p(-expected)
        deviance: Floats = 2 * ((best - observed) * weight).sum(axis=-1)
        return deviance


def _prior() -> Floats:
    import numpy as np

    median, deviation = DRIVE_PRIOR
    drive = np.exp(-0.5 * (np.log(np.array(DRIVES) / median) / deviation) ** 2)
    disturbance = np.array([weight for _, weight in DISTURBANCES])
    prior: Floats = disturbance[:, None, None] * drive[:, None]
    return prior
