"""A correct service passes every check of sessions and balancing, on a real stack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenfold.settings import Settings
from tenfold.stack import Stack, programs
from tenfold.types import Finding, Verdict
from tenfold.verify import CHECKS, run, select
from tests.verify.support import stacks

pytestmark = pytest.mark.control("ids in logs are found")


@pytest.fixture(autouse=True)
def installed_programs(requires_server: Callable[[Any, str], Any]) -> None:
    requires_server(programs.find_redis(Settings()), "Redis")
    requires_server(programs.find_nginx(Settings()), "nginx")


def findings(settings: Settings, only: list[str]) -> dict[str, Finding]:
    with Stack(settings) as stack:
        return {found.check.name: found.finding for found in run(select(CHECKS, only), stack, settings)}


@pytest.mark.guarantee(
    "no check fails on a correct service",
    pattern="checks",
    under="kills, replacements, overload on a real stack",
)
def test_correct_service_passes(tmp_path: Path) -> None:
    settings = stacks.passing(tmp_path, backups=1)
    stacks.store_baseline(tmp_path, 85)
    found = findings(settings, ["sessions", "balancing"])
    skipped = {name for name, finding in found.items() if finding.verdict is Verdict.SKIP}
    # On a busy machine the generator is at its limit before the service is.
    assert skipped <= {"goodput under overload"}
    assert [finding for finding in found.values() if finding.verdict is Verdict.FAIL] == []


def test_weighted_round_robin_is_even(tmp_path: Path) -> None:
    settings = stacks.passing(tmp_path, instances=2, method="round_robin", weights=(2, 1))
    (finding,) = findings(settings, ["load is even"]).values()
    assert finding.verdict is Verdict.PASS, finding
