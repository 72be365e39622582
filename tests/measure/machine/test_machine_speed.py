"""A machine whose speed changes is noticed; a steady one is not."""

from __future__ import annotations

import pytest

from tenfold.measure.machine.machine_speed import FEWEST, SpeedGauge, spread
from tenfold.measure.measurement import notices
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([1.0] * 100, 1.0),
        ([1.0] * 50 + [2.0] * 50, 2.0),
        ([1.0] * 99 + [50.0], 1.0),
        ([1.0] * (FEWEST - 1), None),
        ([0.0] * FEWEST, None),
    ],
)
def test_spread_ignores_single_outliers(seconds: list[float], expected: float | None) -> None:
    assert spread(seconds) == expected


def test_gauge_times_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.measure.machine.machine_speed.INTERVAL_S", 0.005)
    with SpeedGauge() as gauge:
        assert eventually(lambda: gauge.spread) >= 1.0


def test_notice_only_for_an_unsteady_machine() -> None:
    assert notices((), (), speed=None) == notices((), (), speed=1.1) == ()
    assert "factor of 1.9" in notices((), (), speed=1.9)[0]
