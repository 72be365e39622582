"""Each attack finds the service that falls to it, and none cries wolf on one that is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenfold.sessions import BearerTransport
from tenfold.settings.verify import SessionsSettings
from tenfold.types import Finding, Verdict
from tenfold.verify.sessions import attacks, leaks
from tests.verify.services.tenfolds import in_memory
from tests.verify.support.served import standing
from tests.verify.support.sessions_cases import BEARER, BODIES, DECLARED, FALLEN, Shop, shared, signed_cookie

CASES = [
    pytest.param(name, service, settings, claim, id=f"{name}: {title}")
    for name, cases in FALLEN.items()
    for title, service, settings, claim in cases
]


def run(name: str, service: Any, settings: SessionsSettings, folder: Path) -> Finding:
    apps = service if isinstance(service, tuple) else (service,)
    with standing(folder, *apps) as stack:
        return BODIES[name](stack, settings)


@pytest.mark.parametrize(("name", "service", "settings", "claim"), CASES)
def test_what_is_wrong_is_found(
    name: str, service: Callable[[], Any], settings: SessionsSettings, claim: str, tmp_path: Path
) -> None:
    finding = run(name, service(), settings, tmp_path)
    assert finding.verdict is Verdict.FAIL, finding
    assert claim in finding.claim
    assert finding.check == name and finding.remedy


def twice(**options: Any) -> tuple[Any, Any]:
    """One app as two instances: its store is theirs."""
    app = in_memory(**options)
    return app, app


RIGHT = {
    "one instance": (lambda: Shop(), DECLARED),
    "two instances": (shared, DECLARED),
    "strangers may write": (lambda: shared(anonymous=True), DECLARED),
    "bearer": (lambda: shared(bearer=True), BEARER),
    "tenfold": (twice, DECLARED),
    "tenfold, bearer": (lambda: twice(transport=BearerTransport()), BEARER),
}


@pytest.mark.parametrize("service", RIGHT, ids=str)
@pytest.mark.parametrize("name", BODIES)
def test_what_is_right_passes(name: str, service: str, tmp_path: Path) -> None:
    make, settings = RIGHT[service]
    finding = run(name, make(), settings, tmp_path)
    skipped = name == {"one instance": "no affinity needed"}.get(service) or (
        name == leaks.ATTRIBUTES and settings is BEARER
    )
    assert finding.verdict is (Verdict.SKIP if skipped else Verdict.PASS), finding


@pytest.mark.parametrize("name", [attacks.FIXATION, attacks.GUESSING])
def test_a_signed_cookie_is_neither_fixed_nor_guessed(name: str, tmp_path: Path) -> None:
    assert run(name, signed_cookie(), DECLARED, tmp_path).verdict is Verdict.PASS


def test_what_never_ended_has_not_come_back(tmp_path: Path) -> None:
    assert run("no session resurrection", signed_cookie(), DECLARED, tmp_path).verdict is Verdict.SKIP


@pytest.mark.parametrize("name", BODIES)
def test_nothing_declared_is_skipped_with_the_key_to_set(name: str, tmp_path: Path) -> None:
    finding = run(name, Shop(), SessionsSettings(), tmp_path)
    assert finding.verdict is Verdict.SKIP
    assert (
        "sessions.login" in finding.claim
        and 'set sessions.login, for example login = "POST /login"' in finding.remedy
    )
