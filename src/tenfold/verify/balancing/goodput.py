"""Proof that a service which is asked for three times what it can do still does nine tenths of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tenfold.measure.trial import Trial, TrialRequest
from tenfold.types import Finding, Stack, Verdict

if TYPE_CHECKING:
    from tenfold.measure.settings import MeasureSettings

GOODPUT = "goodput under overload"

FACTOR = 3.0
KEPT = 0.9
_MEASURE = "store a capacity: tenfold measure --save main"
_PUSH_S = 6.0
_SEARCH_S = 25.0
_HOLDS_S, _MOST_OF = 3.0, 0.8
_ATTEMPTS = 3
_MORE = 1.3  # what is kept of a capacity that was measured too small
_FEW = 20.0  # arrivals per second below which so few seconds say too little


class Generator(Protocol):
    """What this check needs of a load generator."""

    def run(self, request: TrialRequest) -> Trial:
        """Carry out one open-loop trial."""


def overload(
    stack: Stack,
    settings: MeasureSettings,
    *,
    root: Path,
    known: Callable[[], float | None] = lambda: None,
) -> Finding:
    """Whether at three times its capacity a service still does 90 % of its capacity within the objective.

    Open loop: arrivals do not wait for answers. The capacity is the low end of a stored baseline's interval
    if most of that still holds, or found by a search of 25 seconds.

    Args:
        root: the folder that the scenario is relative to.
        known: the stored capacity in arrivals per second, or None.
    """
    from tenfold.measure.load import generator as measure

    if not (root / settings.scenario).is_file():
        claim = f"there is no scenario {settings.scenario}"
        return Finding(
            GOODPUT, claim, Verdict.SKIP, remedy="set measure.scenario, or write one: tenfold init"
        )
    with ExitStack() as running:
        generator = running.enter_context(
            measure.Generator(root / settings.scenario, stack.url, settings=settings, cwd=root)
        )
        generator.start_users(settings.users)
        return _overloaded(generator, settings, ceiling=generator.calibrate(), known=known())


def _overloaded(
    generator: Generator, settings: MeasureSettings, *, ceiling: float, known: float | None
) -> Finding:
    capacity = known
    if capacity is None or not holds(generator, settings, capacity):
        capacity = searched(generator, settings, ceiling=ceiling)
    if capacity is None:
        return Finding(GOODPUT, "no capacity was found within 25 s", Verdict.SKIP, remedy=_MEASURE)
    if ceiling and FACTOR * capacity > ceiling:
        claim = f"it takes {FACTOR * capacity:,.0f} arrivals/s, and the generator sends {ceiling:,.0f}"
        return Finding(GOODPUT, claim, Verdict.SKIP, remedy="use FastHttpUser in the scenario")
    return pushed(generator, capacity, seed=settings.seed)


def holds(generator: Generator, settings: MeasureSettings, capacity: float) -> bool:
    """Whether a stored capacity is true of this machine as it is now: most of it meets the objective."""
    trial = generator.run(TrialRequest(_MOST_OF * capacity, _HOLDS_S, "confirm", settings.seed + 2))
    return trial.bad_share <= settings.objective.bad_share


def searched(generator: Generator, settings: MeasureSettings, *, ceiling: float) -> float | None:
    """The low end of a capacity that a short search found, arrivals per second; None when it found none."""
    from tenfold.measure.search.capacity import CapacitySearch

    short = settings.model_copy(update={"budget_s": _SEARCH_S, "overload_s": 0.0, "width": 0.25})
    search = CapacitySearch(short, ceiling=0.9 * ceiling if ceiling else math.inf)
    while (request := search.next_trial()) is not None:
        search.record(generator.run(request))
    return search.result().low or None


def pushed(generator: Generator, capacity: float, *, seed: int) -> Finding:
    """Ask for three times the capacity; again, and for more, where that turns out to have been too small."""
    for attempt in range(_ATTEMPTS):
        request = TrialRequest(FACTOR * capacity, _PUSH_S, "overload", seed + 3 + attempt, settle_s=1.0)
        trial = generator.run(request)
        good = trial.good / (trial.seconds or 1.0)
        if good < _MORE * capacity or attempt == _ATTEMPTS - 1:
            break
        capacity = good
    return judged(trial, capacity)


def judged(push: Trial, capacity: float) -> Finding:
    """The finding about one overloaded trial; pure."""
    seconds = push.seconds or 1.0
    kept = push.good / seconds / capacity
    refused = sum(block.refused for block in push.blocks) / push.offered if push.offered else 0.0
    numbers = {
        "capacity": round(capacity, 1),
        "offered": round(push.offered / seconds, 1),
        "goodput": round(push.good / seconds, 1),
        "kept": round(kept, 3),
        "refused_share": round(refused, 3),
    }
    claim = (
        f"at {push.offered / seconds:.0f}/s it keeps {kept:.0%} of {capacity:.0f}/s and refuses {refused:.0%}"
    )
    if capacity < _FEW:
        return Finding(GOODPUT, f"{claim}: too few to judge", Verdict.SKIP, numbers)
    if kept > _MORE:
        return Finding(GOODPUT, f"{claim}: that is no overload", Verdict.SKIP, numbers, _MEASURE)
    if kept >= KEPT:
        return Finding(GOODPUT, claim, Verdict.PASS, numbers)
    if push.generator.is_limited():
        return Finding(GOODPUT, f"{claim}; the generator itself was at its limit", Verdict.SKIP, numbers)
    return Finding(
        GOODPUT, claim, Verdict.FAIL, numbers, "refuse early: put the concurrency limiter into the app"
    )
