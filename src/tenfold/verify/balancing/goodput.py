"""Check that a service under three times its capacity still does nine tenths of it.

It may prefer some requests: a shop that serves all orders and refuses catalogue pages answers fewer arrivals,
of which each costs more. So its work counts as well: answers, each weighted by its endpoint's mean latency
before the overload.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import Endpoint, Trial, TrialRequest
from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.scenario import has_scenario, open_generator
from tenfold.verify.measure.baseline import stored_capacity

if TYPE_CHECKING:
    from tenfold.measure.load.generator import Generator

GOODPUT = "goodput under overload"

FACTOR = 3.0
KEPT = 0.9
_MEASURE = "store a capacity: tenfold measure --save main"
_PUSH_S = 6.0
_SEARCH_S = 25.0
_HOLDS_S, _MOST_OF = 3.0, 0.8
_ATTEMPTS = 3
_MORE = 1.3  # what is kept of a capacity that was measured too small
_LATE = 0.02  # a share of late arrivals beyond which what is slow may not be the service's doing
_FEW = 20.0  # arrivals per second below which so few seconds say too little


def check_goodput(stack: Stack, settings: Settings) -> Finding:
    """Send three times the capacity, open loop: 90 % of it, or of its work, has to stay within the objective.

    The capacity is the low end of the newest baseline's interval if most of that still holds, or found by a
    search of 25 seconds.
    """
    measure = settings.measure
    if not has_scenario(settings):
        claim = f"there is no scenario {measure.scenario}"
        return Finding(
            GOODPUT, claim, Verdict.SKIP, remedy="set measure.scenario, or write one: tenfold init"
        )
    from tenfold.measure.machine.priority import LowPriority

    servers = LowPriority([lambda: [pid for server in stack.servers for pid in server.pids()]])
    with servers, open_generator(stack, settings) as generator:
        generator.start_users(measure.users)
        ceiling, capacity = generator.calibrate(), stored_capacity(settings)
        if capacity is None or not holds(generator, measure, capacity):
            capacity = search_capacity(generator, measure, ceiling=ceiling)
        return _push(generator, measure, ceiling=ceiling, capacity=capacity)


def _push(
    generator: Generator, settings: MeasureSettings, *, ceiling: float, capacity: float | None
) -> Finding:
    if capacity is None:
        return Finding(GOODPUT, "no capacity was found within 25 s", Verdict.SKIP, remedy=_MEASURE)
    if ceiling and FACTOR * capacity > ceiling:
        claim = f"it takes {FACTOR * capacity:,.0f} arrivals/s, and the generator sends {ceiling:,.0f}"
        return Finding(GOODPUT, claim, Verdict.SKIP, remedy="use FastHttpUser in the scenario")
    return overload(generator, capacity, settings)


def holds(generator: Generator, settings: MeasureSettings, capacity: float) -> bool:
    """Return whether 80 % of a stored capacity meets the objective on this machine now."""
    trial = generator.run(TrialRequest(_MOST_OF * capacity, _HOLDS_S, "confirm", settings.seed + 2))
    return trial.bad_share <= settings.objective.bad_share


def search_capacity(generator: Generator, settings: MeasureSettings, *, ceiling: float) -> float | None:
    """Search for the capacity; return its low end in arrivals per second, None when none is found."""
    from tenfold.measure.search.capacity import CapacitySearch

    short = settings.model_copy(update={"budget_s": _SEARCH_S, "overload_s": 0.0, "width": 0.25})
    search = CapacitySearch(short, ceiling=0.9 * ceiling if ceiling else math.inf)
    while (request := search.next_trial()) is not None:
        search.record(generator.run(request))
    return search.result().low or None


def overload(generator: Generator, capacity: float, settings: MeasureSettings) -> Finding:
    """Send three times the capacity; send more where the capacity turns out to have been too small."""
    before = generator.run(TrialRequest(_MOST_OF * capacity, _HOLDS_S, "confirm", settings.seed + 2))
    for attempt in range(_ATTEMPTS):
        seed = settings.seed + 3 + attempt
        request = TrialRequest(FACTOR * capacity, _PUSH_S, "overload", seed, settle_s=1.0)
        trial = generator.run(request)
        good = trial.good / (trial.seconds or 1.0)
        if good < _MORE * capacity or attempt == _ATTEMPTS - 1:
            break
        capacity = good
    kept_work = work_ratio(trial, before, capacity, slow_ms=settings.objective.slow_ms)
    return judge_goodput(trial, capacity, kept_work=kept_work)


def work_ratio(push: Trial, before: Trial, capacity: float, *, slow_ms: float) -> float:
    """The work of an overloaded trial relative to that of the capacity; 0 if unknown.

    Args:
        before: a trial without overload, which says what an answer of each endpoint costs.
    """
    from tenfold.measure.load.histogram import mean

    costs = {one.name: mean(one.raw) for one in before.endpoints}

    def work(trial: Trial) -> float:
        return sum(good_answers(one, slow_ms) * costs.get(one.name, 0.0) for one in trial.endpoints) / (
            trial.seconds or 1.0
        )

    rate = before.offered / (before.seconds or 1.0)
    at_capacity = work(before) * capacity / rate if rate else 0.0
    return work(push) / at_capacity if at_capacity else 0.0


def good_answers(endpoint: Endpoint, slow_ms: float) -> float:
    """The answers of an endpoint within the objective, those that failed left out."""
    from tenfold.measure.load.histogram import count, share_above

    within = count(endpoint.corrected) * (1.0 - share_above(endpoint.corrected, slow_ms))
    return min(within, endpoint.requests - endpoint.failed - endpoint.refused)


def judge_goodput(push: Trial, capacity: float, *, kept_work: float = 0.0) -> Finding:
    """The finding about one overloaded trial; pure.

    Args:
        kept_work: the share of the capacity's work that it did.
    """
    seconds = push.seconds or 1.0
    kept = push.good / seconds / capacity
    refused = sum(block.refused for block in push.blocks) / push.offered if push.offered else 0.0
    numbers = {
        "capacity": round(capacity, 1),
        "offered": round(push.offered / seconds, 1),
        "goodput": round(push.good / seconds, 1),
        "kept": round(kept, 3),
        "kept_work": round(kept_work, 3),
        "refused_share": round(refused, 3),
    }
    work = f" ({kept_work:.0%} of its work)" if kept_work else ""
    claim = (
        f"at {push.offered / seconds:.0f}/s it keeps {kept:.0%} of {capacity:.0f}/s{work} "
        f"and refuses {refused:.0%}"
    )
    if capacity < _FEW:
        return Finding(GOODPUT, f"{claim}: too few to judge", Verdict.SKIP, numbers)
    if kept > _MORE:
        return Finding(GOODPUT, f"{claim}: that is no overload", Verdict.SKIP, numbers, _MEASURE)
    if max(kept, kept_work) >= KEPT:
        return Finding(GOODPUT, claim, Verdict.PASS, numbers)
    if push.generator.is_limited() or push.generator.late_share > _LATE:
        return Finding(
            GOODPUT, f"{claim}; arrivals left late, on a machine without a free core", Verdict.SKIP, numbers
        )
    return Finding(
        GOODPUT, claim, Verdict.FAIL, numbers, "refuse early: put the concurrency limiter into the app"
    )
