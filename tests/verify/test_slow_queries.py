"""The check of slow queries on a real stack: it finds a slow statement, and passes without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tenfold.measure.settings import MeasureSettings
from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.stack import Stack
from tenfold.types import Verdict
from tenfold.verify.measure.baseline import check_slow_queries

HERE = Path(__file__).parent / "slow_service"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    settings = Settings(
        root=HERE,
        service=ServiceSettings(app="slow_app:app"),
        stack=StackSettings(redis=False, nginx=False),
    )
    with Stack(settings) as running:
        yield running


@pytest.mark.guarantee(
    "slow queries are found on a running stack",
    pattern="evidence",
    under="a statement of 150 ms",
    control="the same test, fast",
)
@pytest.mark.parametrize(("scenario", "expected"), [("slow.py", Verdict.FAIL), ("fast.py", Verdict.PASS)])
def test_slow_statement_is_named_with_its_line(stack: Stack, scenario: str, expected: Verdict) -> None:
    settings = Settings(root=HERE, measure=MeasureSettings(scenario=Path(scenario), users=5))
    finding = check_slow_queries(stack, settings)
    assert finding.verdict is expected, finding.claim
    if expected is Verdict.FAIL:
        assert "slow_app.py:17" in finding.claim and "pg_sleep" in finding.claim
