"""The declared scenario, for checks that need the requests of its users."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tenfold.measure.trial import TrialRequest
from tenfold.settings import Settings
from tenfold.types import Stack

if TYPE_CHECKING:
    from tenfold.measure.load.generator import Generator

# A load that no service notices, long enough for every task of a scenario to come.
LIGHT_RATE, LIGHT_S = 10.0, 4.0


def has_scenario(settings: Settings) -> bool:
    """Return whether the declared locustfile exists."""
    return os.path.isfile(settings.root / settings.measure.scenario)


def open_generator(stack: Stack, settings: Settings) -> Generator:
    """A load generator that runs the scenario against the stack; a context manager."""
    from tenfold.measure.load.generator import Generator

    scenario = settings.root / settings.measure.scenario
    return Generator(scenario, stack.url, settings=settings.measure, cwd=settings.root)


def light_trial(settings: Settings, *, rate: float = LIGHT_RATE, seconds: float = LIGHT_S) -> TrialRequest:
    """A short trial at a low rate, arrivals per second."""
    return TrialRequest(rate, seconds, "warm-up", settings.measure.seed)


def send_light_load(
    stack: Stack, settings: Settings, *, rate: float = LIGHT_RATE, seconds: float = LIGHT_S
) -> None:
    """Send the scenario's requests for a few seconds, at a low rate of arrivals per second."""
    with open_generator(stack, settings) as generator:
        generator.start_users(settings.measure.users)
        generator.run(light_trial(settings, rate=rate, seconds=seconds))
