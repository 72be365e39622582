"""Real stacks for the checks: one on which they fail, one on which they pass."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.balancing.settings import BalancingSettings
from tenfold.measure.report.report import ObjectiveReport, save
from tenfold.measure.settings import MeasureSettings, Objective
from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.stack import Stack
from tests.measure.support.report_examples import capacity, report
from tests.verify.support.sessions_cases import DECLARED

SERVICES = Path(__file__).parents[1] / "services"
SCENARIO = """
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get("/work")
"""
QUICK = {"fail_timeout_s": 1, "client_idle_s": 0.5}
MEASURE = MeasureSettings(objective=Objective(slow_ms=200))


def declared(folder: Path, app: str, *, instances: int, redis: bool, **balancing: Any) -> Settings:
    """Settings of a service that is copied into ``folder``: it may write there."""
    shutil.copytree(SERVICES, folder / "service", dirs_exist_ok=True)
    (folder / "locustfile.py").write_text(SCENARIO)
    return Settings(
        root=folder,
        service=ServiceSettings(app=app, factory=True, folder=Path("service"), ready_path="/orders"),
        stack=StackSettings(database=False, redis=redis, instances=instances),
        measure=MEASURE,
        verify=DECLARED,
        balancing=BalancingSettings(**{**QUICK, **balancing}),
    )


@dataclass
class AbruptStack:
    """A stack that replaces an instance by killing it, without taking it out of nginx."""

    running: Stack

    def __getattr__(self, name: str) -> Any:
        return getattr(self.running, name)

    def replace(self, server: Any) -> None:
        from tenfold.verify.kit.instances import kill

        kill(server)
        self.running.restart(server)


def store_baseline(folder: Path, low: float) -> None:
    """Store a capacity, so that no check has to search for it."""
    objective = ObjectiveReport(**MEASURE.objective.model_dump())
    stored = report(capacity=capacity(low=low, high=low * 1.1), objective=objective)
    save(stored, folder / ".tenfold" / "baselines" / "main.json")


def failing(folder: Path, ending: ExitStack) -> tuple[AbruptStack, Settings]:
    """Instances that share nothing, and an nginx that is not what the settings say.

    It favours one instance, tries one only for each request, and never gives up on a dead one.
    """
    settings = declared(
        folder,
        "own:naive",
        instances=2,
        redis=False,
        method="round_robin",
        weights=(5, 1),
        tries=1,
        max_fails=0,
    )
    return AbruptStack(ending.enter_context(Stack(settings))), settings


def unshared_sessions(folder: Path, ending: ExitStack) -> tuple[Stack, Settings]:
    """Sessions in each instance's own memory, behind nginx with one instance and a backup."""
    settings = declared(folder, "own:naive", instances=2, redis=False, backups=1)
    return ending.enter_context(Stack(settings)), settings


def with_balancing(settings: Settings, **balancing: Any) -> Settings:
    """Settings that differ from those that the stack runs with."""
    table = settings.balancing.model_copy(update={"weights": (), **balancing})
    return settings.model_copy(update={"balancing": table})


def passing(folder: Path, *, instances: int = 3, **balancing: Any) -> Settings:
    """tenfold's own sessions in Redis, an nginx as configured, a service that refuses what is too much."""
    return declared(folder, "tenfolds:in_redis", instances=instances, redis=True, **balancing)
