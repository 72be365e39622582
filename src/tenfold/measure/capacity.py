"""prototype"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from tenfold.measure.crossing import Sample, crossing
from tenfold.measure.sequential import SequentialTest, batches, growing, steady
from tenfold.measure.trial import TrialRequest

SKIP_S = 1.0
P = dict(stretch=1.0, confirm_s=10.0, ramp_s=2.0)


class Rule:
    def __init__(self, test, hopeless_s=3.0, sprt=True):
        self.test = test
        self.sprt = sprt

    def enough(self, blocks):
        seconds = sum(b.seconds for b in blocks)
        part = steady(blocks, skip_s=SKIP_S)
        tail = part[-max(1, int(2 / part[-1].seconds)) :] if part else ()
        off = sum(b.offered for b in tail)
        bad = sum(b.bad for b in tail)
        if seconds >= 3 and off >= 10 and bad > 0.7 * off:
            return True
        if not self.sprt or seconds < SKIP_S + 4:
            return False
        if growing(part):
            return False
        return self.test.decide(part) != "undecided"


@dataclass
class Capacity:
    low: float
    high: float
    outcome: str
    why: str
    seconds: float
    trials: int
    inflation: float = 0
    conf: int = 0
    confidence: float = 0.95

    @property
    def reason(self):
        return self.why


class CapacitySearch:
    def __init__(self, settings, **kw):
        self.s = settings
        self.P = {**P, **kw}
        self.spent = 0.0
        self.trials = []
        self.samples = []
        self.over = []
        b = settings.objective.bad_share
        self.test = SequentialTest(0.6 * b, 1.6 * b)
        self.n = 0
        self.plan = self._plan()
        self.done = False
        self.why = ""
        self.est = None

    def next(self):
        if self.n == 0:
            self.req = next(self.plan, None)
        return self.req

    def tell(self, trial):
        self.spent += trial.seconds + trial.settled_s
        self.trials.append(trial)
        self.over.append(trial.settled_s)
        try:
            self.req = self.plan.send(trial)
        except StopIteration:
            self.req = None

    def request(self, rate, dur, purpose, rule=None):
        self.n += 1
        return TrialRequest(rate, dur, purpose, self.s.seed * 1000 + self.n, rule)

    def left(self):
        return self.s.budget_s - self.spent - 0.5

    def verdict(self, trial):
        part = steady(trial.blocks, skip_s=SKIP_S)
        return self.test.decide(part)

    def add(self, trial):
        part = steady(trial.blocks, skip_s=SKIP_S)
        c = batches(part, seconds=self.P["stretch"])
        if c and sum(x.offered for x in c):
            self.samples.append(Sample(trial.request.rate, tuple(c), trial.seconds))

    def _plan(self):
        yield self.request(5, 3, "warm-up")
        rate = 20.0
        low = None
        while True:
            t = yield self.request(rate, self.P["ramp_s"] + SKIP_S, "ramp", Rule(self.test, sprt=False))
            self.add(t)
            part = steady(t.blocks, skip_s=SKIP_S)
            off = sum(b.offered for b in part)
            bad = sum(b.bad for b in part)
            if self.verdict(t) == "failed" or growing(part):
                high = rate
                break
            low = rate
            rate *= 2
        done = sum(b.offered for b in t.blocks) - t.blocks[-1].in_flight
        guess = done / t.seconds
        if low is None:
            low = 1.0
        while high / low > 1.2 and self.left() > 8:
            r = sqrt(low * high)
            if guess and low * 1.02 < guess < high / 1.02:
                r = guess
            guess = 0
            t = yield self.request(r, min(10.0, self.left()), "search", Rule(self.test))
            self.add(t)
            v = self.verdict(t)
            if v == "passed":
                low = r
            elif v == "failed":
                high = r
            else:
                break
        side = 0
        conf = 0
        while True:
            self.est = e = crossing(self.samples, limit=self.s.objective.bad_share)
            mid = sqrt(e.low * e.high)
            if conf >= 2 and (e.high - e.low) / mid <= self.s.width:
                self.why = "width"
                break
            if self.left() < 5:
                self.why = "budget"
                break
            r = e.q1 if side == 0 else e.q3
            side = 1 - side
            conf += 1
            self.conf = conf
            d = min(self.P["confirm_s"], self.left())
            t = yield self.request(r, d, "confirm", Rule(self.test, sprt=False))
            self.add(t)

    def result(self):
        e = self.est
        return Capacity(
            e.low, e.high, "found", self.why, self.spent, len(self.trials), e.inflation, self.conf
        )

    def verdicts(self):
        return [(t.request.rate, self.verdict(t)) for t in self.trials if t.blocks]
