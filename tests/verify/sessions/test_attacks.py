"""Each check of sessions fails on faulty services and passes on correct ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenfold.sessions import BearerTransport
from tenfold.settings import Settings
from tenfold.settings.verify import VerifySettings
from tenfold.types import Finding, Verdict
from tenfold.verify.sessions import attacks, leaks
from tests.verify.services.tenfolds import in_memory
from tests.verify.support.served import serve
from tests.verify.support.sessions_cases import BEARER, BODIES, DECLARED, FAILING, Shop, shared, signed_cookie

CASES = [
    pytest.param(name, service, settings, claim, id=f"{name}: {title}")
    for name, cases in FAILING.items()
    for title, service, settings, claim in cases
]


def run(name: str, service: Any, settings: VerifySettings, folder: Path) -> Finding:
    apps = service if isinstance(service, tuple) else (service,)
    with serve(folder, *apps) as stack:
        return BODIES[name](stack, Settings(verify=settings))


@pytest.mark.guarantee(
    "the checks of sessions find faults in any service",
    pattern="checks",
    under="fixation, guessing, replay, resurrection, lost updates, oversize, leaks",
)
@pytest.mark.parametrize(("name", "service", "settings", "claim"), CASES)
def test_faulty_service_fails(
    name: str, service: Callable[[], Any], settings: VerifySettings, claim: str, tmp_path: Path
) -> None:
    finding = run(name, service(), settings, tmp_path)
    assert finding.verdict is Verdict.FAIL, finding
    assert claim in finding.claim
    assert finding.check == name and finding.remedy


def twice(**options: Any) -> tuple[Any, Any]:
    """One app as two instances: its store is theirs."""
    app = in_memory(**options)
    return app, app


CORRECT = {
    "one instance": (lambda: Shop(), DECLARED),
    "two instances": (shared, DECLARED),
    "strangers may write": (lambda: shared(anonymous=True), DECLARED),
    "bearer": (lambda: shared(bearer=True), BEARER),
    "tenfold": (twice, DECLARED),
    "tenfold, bearer": (lambda: twice(transport=BearerTransport()), BEARER),
}


@pytest.mark.control(
    "the checks of sessions find faults in any service", "six correct services, cookies and tokens"
)
@pytest.mark.parametrize("service", CORRECT, ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_correct_service_passes(name: str, service: str, tmp_path: Path) -> None:
    make, settings = CORRECT[service]
    finding = run(name, make(), settings, tmp_path)
    skipped = name == {"one instance": "no affinity needed"}.get(service) or (
        name == leaks.ATTRIBUTES and settings is BEARER
    )
    assert finding.verdict is (Verdict.SKIP if skipped else Verdict.PASS), finding


@pytest.mark.parametrize("name", [attacks.FIXATION, attacks.GUESSING])
def test_signed_cookie_passes_fixation_and_guessing(name: str, tmp_path: Path) -> None:
    assert run(name, signed_cookie(), DECLARED, tmp_path).verdict is Verdict.PASS


def test_session_that_survives_logout_skips_resurrection(tmp_path: Path) -> None:
    assert run("no session resurrection", signed_cookie(), DECLARED, tmp_path).verdict is Verdict.SKIP
