"""Every check there is, one line each, in the order of the patterns.

Here each check gets what it needs beyond its own folder's settings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tenfold.settings import Settings
from tenfold.types import Finding, Stack
from tenfold.verify.balancing import faults, goodput
from tenfold.verify.balancing import shares as balancing
from tenfold.verify.database import outages, pool_pressure
from tenfold.verify.database import staleness as database
from tenfold.verify.measure import baseline as measure
from tenfold.verify.runner import Check
from tenfold.verify.sessions import attacks, concurrency, leaks
from tenfold.verify.sessions import instances as sessions
from tenfold.verify.sessions.target import somebody

BASELINES = Path(".tenfold", "baselines")  # in the folder of tenfold.toml


def _baselines(settings: Settings) -> Path:
    return settings.root / BASELINES


def _scenario(stack: Stack, settings: Settings) -> Callable[[], object] | None:
    """Sends what the scenario's users send, for a few seconds; None without a scenario."""
    if not (settings.root / settings.measure.scenario).is_file():
        return None
    return lambda: measure.light_load(stack, settings.measure, root=settings.root)


def _session(
    name: str,
    body: Callable[..., Finding],
    *needs: str,
    timeout_s: float = 60.0,
) -> Check:
    """A check that gets a pattern's settings alone."""
    return Check(
        name,
        "sessions",
        lambda stack, settings: body(stack, settings.sessions),
        needs=frozenset({"app", *needs}),
        timeout_s=timeout_s,
    )


def _front(name: str, body: Callable[..., Finding], *, timeout_s: float = 60.0) -> Check:
    """A check of what nginx does with requests for several instances."""
    return Check(
        name,
        "balancing",
        lambda stack, settings: body(stack, settings.balancing, ready_path=settings.service.ready_path),
        needs=frozenset({"app", "nginx", "instances"}),
        timeout_s=timeout_s,
    )


def _database(name: str, body: Callable[..., Finding], *needs: str, timeout_s: float = 120.0) -> Check:
    """A check that sends a visitor, signed in where a login is declared."""
    return Check(
        name,
        "database",
        lambda stack, settings: body(
            stack, settings.database, enter=lambda: somebody(stack, settings.sessions)
        ),
        needs=frozenset({"app", "database", *needs}),
        timeout_s=timeout_s,
    )


CHECKS: tuple[Check, ...] = (
    Check(
        measure.BASELINE,
        "measure",
        lambda stack, settings: measure.baseline_established(
            stack, settings.measure, folder=_baselines(settings)
        ),
    ),
    Check(
        measure.PERCENTILES,
        "measure",
        lambda stack, settings: measure.percentiles_known(
            stack, settings.measure, folder=_baselines(settings)
        ),
    ),
    Check(
        measure.SLOW_QUERIES,
        "measure",
        lambda stack, settings: measure.slow_queries(stack, settings.measure, root=settings.root),
        needs=frozenset({"app", "database"}),
    ),
    _session(attacks.FIXATION, attacks.fixation),
    _session(attacks.GUESSING, attacks.guessing),
    _session(attacks.REPLAY, attacks.replay),
    _session(concurrency.RESURRECTION, concurrency.resurrection),
    _session(concurrency.LOST_UPDATE, concurrency.lost_update),
    _session(attacks.OVERSIZE, attacks.oversize),
    _session(leaks.ATTRIBUTES, leaks.attributes),
    _session(leaks.HIDDEN, leaks.hidden),
    _session(sessions.AFFINITY, sessions.affinity, "instances"),
    Check(
        sessions.SURVIVAL,
        "sessions",
        lambda stack, settings: sessions.survival(
            stack, settings.sessions, away_s=settings.balancing.fail_timeout_s
        ),
        needs=frozenset({"app", "nginx", "instances"}),
        timeout_s=180,
    ),
    Check(
        sessions.LOCAL_FILES,
        "sessions",
        lambda stack, settings: sessions.local_files(
            stack, settings.sessions, scenario=_scenario(stack, settings)
        ),
        needs=frozenset({"app"}),
    ),
    _front(balancing.EVEN, balancing.even),
    _front(balancing.SLOW, balancing.slow_gets_less),
    _front(balancing.BACKUP, balancing.backup, timeout_s=120),
    _front(faults.KILLED, faults.killed, timeout_s=180),
    _front(faults.REPEATED, faults.repeated, timeout_s=180),
    _front(faults.REPLACED, faults.replaced, timeout_s=240),
    Check(
        goodput.GOODPUT,
        "balancing",
        lambda stack, settings: goodput.overload(
            stack,
            settings.measure,
            root=settings.root,
            known=lambda: measure.known_capacity(settings.measure, folder=_baselines(settings)),
        ),
        needs=frozenset({"app"}),
        timeout_s=120,
    ),
    _database(database.REACH, database.reach, "replicas"),
    _database(database.OWN, database.own_writes, "replicas"),
    _database(database.BACK, database.never_back, "replicas"),
    _database(outages.OUTAGE, outages.outage, "replicas", timeout_s=180),
    _database(outages.SURVIVES, outages.survives),
    _database(pool_pressure.BUDGET, pool_pressure.budget),
    _database(pool_pressure.RETURNED, pool_pressure.returned),
)
