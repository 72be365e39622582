"""At which rate does the share of bad arrivals cross the limit? An interval, from many short trials.

One trial near the capacity says little: a bad moment makes a run of bad arrivals, and a service at 98 % of its
capacity looks like one at 102 % for seconds. So all trials are read together. Below saturation the logarithm of a
queue's tail grows linearly with the rate (exactly so in M/M/1, where P(T > t) = exp((rate - service rate) t)), on
top of a floor that is there at any rate. The posterior of

    share(rate) = floor + (limit - floor) · (rate / capacity) ** steepness,      at most ``CAP``

over a grid of capacity, steepness and floor, flat in their logarithms, gives the interval. Shares above
``CAP`` only say "beyond": how deep an overload is depends on how long it lasted and not on the capacity.

Counts are overdispersed (quasi-likelihood: Wedderburn, 1974; McCullagh and Nelder, 1989, chapter 9). The inflation
is estimated from the trials themselves and, being estimated, turns the normal posterior into a Student one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenfold.measure.sequential import Count

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """The counted part of one trial: its rate and its stretches, in order, of equal length."""

    rate: float
    counts: tuple[Count, ...]
    seconds: float = 0.0

    @property
    def offered(self) -> int:
        return sum(count.offered for count in self.counts)

    @property
    def bad(self) -> int:
        return sum(count.bad for count in self.counts)


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where the share crosses the limit; ``inflation`` is that of counts at the limit."""

    low: float
    middle: float
    high: float
    inflation: float
    floor: float
    q1: float
    q3: float


CAP = 0.95
SLOW = 0.2
CFG = dict(
    qq=0.2,
    prior_df=4.0,
    prior_s=1.0,
    nu=30.0,
    floors=5,
    kappa=1.6,
    shape=0.5,
    h0=0.1,
    h1=4.0,
    hn=9,
    es=(0, 0.04, 0.12),
    ew=(0.6, 0.25, 0.15),
    esc=1.0,
    fail=0.3,
    passes=3,
    relax=0.45,
    hm=0.8,
    hs=1.0,
)


def crossing(samples, *, limit, confidence=0.95, correlated=True):
    import numpy as np

    rates = np.array([s.rate for s in samples])
    offered = np.array([s.offered for s in samples], float)
    share = np.minimum(np.array([s.bad for s in samples]) / offered, CAP)
    failing = min((s.rate for s in samples if s.bad > 2 * limit * s.offered), default=rates.max() * 1.5)
    wide = np.linspace(np.log(rates.min() / 2), np.log(rates.max() * 1.5), 120)
    tail = (1 - confidence) / 2
    at = 0.8 * failing
    expected = np.where(rates < 0.7 * failing, 0.0, limit)
    grid = wide
    for step in range(CFG["passes"]):
        clean = [s for s in samples if s.rate <= 0.8 * at and s.bad < 2 * limit * s.offered]
        floors = _floors(clean, limit)
        f = float(floors[len(floors) // 2])
        tau, df = cluster(samples, limit=limit, floor=f)
        near = np.clip(np.maximum(share - f, np.minimum(expected - f, limit)), 0, 0.3)
        phi = 1 + rates * tau * (near / limit) ** CFG["shape"] * near / np.maximum(near + f, 1e-9)
        mass, best = posterior(samples, share, offered, phi, grid, limit, floors, df)
        below = np.cumsum(mass) - mass / 2
        q = CFG["qq"]
        low, mid, high, q1, q3 = np.interp([tail, 0.5, 1 - tail, q, 1 - q], below, grid)
        at = float(np.exp(mid))
        expected = f + (limit - f) * np.exp(np.minimum(best * np.log(rates / at), 10))
        if step < CFG["passes"] - 1:
            spread = max(high - low, 2 * (grid[1] - grid[0]))
            a, b = max(low - spread, wide[0]), min(high + spread, wide[-1])
            grid = np.linspace(a, b, 100)
    e = lambda v: float(np.exp(v))
    return Crossing(e(low), e(mid), e(high), tau, f, e(q1), e(q3))


def _floors(clean, limit):
    import numpy as np
    from scipy.special import betaincinv

    n = sum(s.offered for s in clean)
    k = sum(s.bad for s in clean)
    q = (np.arange(CFG["floors"]) + 0.5) / CFG["floors"]
    return np.minimum(betaincinv(k + 0.3, n - k + 3, q), 0.9 * limit)


def cluster(samples, *, limit, floor):
    """seconds"""
    sh = CFG["shape"]
    tot = {}
    for join in (1, 2):
        num = den = df = 0.0
        for s in samples:
            share = s.bad / s.offered
            if not 0 < share < CFG["fail"]:
                continue
            cs = s.counts
            n = len(cs) // join
            if n < 2:
                continue
            cs = [
                Count(
                    sum(c.offered for c in cs[i * join : (i + 1) * join]),
                    sum(c.bad for c in cs[i * join : (i + 1) * join]),
                )
                for i in range(n)
            ]
            x2 = sum((c.bad - c.offered * share) ** 2 / c.offered for c in cs if c.offered) / (
                share * (1 - share)
            )
            g = (max(share - floor, 0.02 * limit) / limit) ** sh
            num += (x2 - (n - 1)) / s.rate
            den += (n - 1) * g
            df += (n - 1) * min(g, 1)
        tot[join] = num, den, df
    t1 = max(0, tot[1][0] / tot[1][1]) if tot[1][1] else 0.0
    t2 = max(0, tot[2][0] / tot[2][1]) if tot[2][1] else t1
    est = max(t1, t2, 2 * t2 - t1)
    w = tot[2][2]
    return (CFG["prior_df"] * CFG["prior_s"] + w * est) / (CFG["prior_df"] + w), CFG["nu"] + w


def posterior(samples, share, offered, phi_d, grid, limit, floors, df):
    import numpy as np

    rates = np.array([s.rate for s in samples])
    long = np.array([s.seconds for s in samples])
    best = np.where(share > 0, share * np.log(np.maximum(share, 1e-12)), 0) + (1 - share) * np.log(1 - share)
    hs = np.geomspace(CFG["h0"], CFG["h1"], CFG["hn"])
    es = np.array(CFG["es"])[:, None, None, None]
    h = hs[:, None, None]
    capacity = np.exp(grid)[:, None]
    x = np.log(rates) - grid[:, None]
    steep = np.maximum(1 / (1 / (h * SLOW * capacity) + es), 1.5)
    h = steep / (SLOW * capacity)
    growth = np.exp(np.minimum(steep * x, 12))
    rho = np.exp(np.minimum(x, 0)) / (1 + 3 / steep)
    phi_q = CFG["kappa"] * 2 / h * rho / (1 - rho) ** 2
    excess = np.exp(x) / (1 + 3 / steep) - 1
    z = (excess * long - SLOW) / np.sqrt(long * 2 / (h * capacity))
    escape = CFG["esc"] * np.where(z > 0, z * z / 6, 0)
    w = offered / np.minimum(np.maximum(phi_d, phi_q), 2 * offered) + escape
    eps_c = 3 / (3 + steep)
    eps = np.abs(1 - np.exp(x) / (1 + 3 / steep))
    relax = CFG["relax"] * steep * SLOW * np.minimum((eps_c / np.maximum(eps, eps_c / 2)) ** 2, 4)
    growth = growth * (1 - np.exp(-long / np.maximum(relax, 1e-3)))
    devs = []
    for f in floors:
        expected = np.clip(f + (limit - f) * growth, 1e-6, CAP)
        like = share * np.log(expected) + (1 - share) * np.log1p(-expected)
        devs.append(2 * ((best - like) * w).sum(axis=-1))
    d = np.array(devs)
    d -= d.min()
    p = (
        np.exp(-(df + 1) / 2 * np.log1p(d / df)).sum(axis=0)
        * np.exp(-0.5 * (np.log(hs / CFG["hm"]) / CFG["hs"])[:, None] ** 2)
        * np.array(CFG["ew"])[:, None, None]
    )
    mean = float(np.exp((p * np.log(steep[..., 0])).sum() / p.sum()))
    p = p.sum(axis=(0, 1))
    return p / p.sum(), mean
